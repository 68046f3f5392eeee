"""`daguerre noise IMAGE`: add noise to an image at several timesteps and show what the model predicts; prints the path of the sheet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.atomic_io import check_writable, free_path
from daguerre.cli.adapters import adapter_records
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import choose_threads, open_model
from daguerre.cli.options import AdapterOptions, Height, ImagePath, ModelOptions, OptionalText, Size, Width, parse_size
from daguerre.cli.parsing import parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.output import check_suffix, write_image
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS
from daguerre.pipelines.request import Request, check_unicode
from daguerre.progress import spinner


@dataclass(frozen=True)
class NoiseOptions:
    """Add noise to an image as in training, and show what the model predicts from it.

    The sheet has a column for each timestep t and rows for the noisy image x_t, the noise, the predicted noise and the predicted image. A
    latent diffusion model works on the latents of the image; the sheet shows them decoded.
    """

    image: ImagePath
    """The image."""
    t: Annotated[str, tyro.conf.arg(metavar="T[,T...]")] = "0,250,500,750,999"
    """Timesteps of training: 0 has almost no noise, the last, usually 999, has almost only noise."""
    prompt: OptionalText = None
    """Also predict with this prompt."""
    seed: Annotated[int, tyro.conf.arg(aliases=["-s"], help="Seed of the noise.")] = Request.seed
    size: Size = None
    width: Width = None
    height: Height = None
    loading: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="model", help="")] = field(default_factory=ModelOptions)
    adapters: Annotated[AdapterOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="adapter", help="")] = field(
        default_factory=AdapterOptions
    )
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], help="Output file: .png, .webp or .jpg.", help_behavior_hint="")] = None


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(NoiseOptions, arguments, "noise")
    with usage_errors():
        width, height = parse_size(options.size, options.width, options.height)
        request = Request(seed=options.seed, width=width, height=height)  # checks the ranges
        timesteps = parse_timesteps(options.t)
        check_unicode("prompt", options.prompt or "")
        adapters = adapter_records(options.adapters, replace(request, prompt=options.prompt or ""))
        image = read_input(options.image)
        out = check_suffix(options.out or free_path(Path(f"{options.image.stem}-noise.png")), OUTPUT_FORMATS)
        check_writable(out)
        if os.path.realpath(out) == os.path.realpath(options.image):
            raise DaguerreError(f"--out '{out}' is also the input image; write to another file.")
    loading = options.loading
    choose_threads(loading.threads)
    with spinner("opening the model"):
        model = open_model(loading.model, None, loading.device, loading.dtype, offline=loading.offline, adapters=adapters)

    from daguerre.pipelines.context import GenerationContext
    from daguerre.pipelines.images.preprocess import flatten_input, resize
    from daguerre.pipelines.noising import check_timesteps, noise_sheet

    with usage_errors():
        check_timesteps(model, timesteps)
        size = GenerationContext.of(model, request).size_on(image.pixels)
    with spinner("predicting"):
        sheet = noise_sheet(model, resize(flatten_input(image), size, "crop"), timesteps, options.prompt, request.seed)
    write_image(out, sheet)
    print(out)


def parse_timesteps(text: str) -> list[int]:
    """The timesteps of --t, whole numbers with commas or spaces between them.

    Raises:
        DaguerreError: the text is something else.
    """
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise DaguerreError(f"--t is {text!r}; it is one or more timesteps such as 0,250,500,750,999.")
    return [int(part) for part in parts]
