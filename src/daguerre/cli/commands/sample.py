"""`daguerre sample --model M`: sample images from a prior over codes, with or without a class, text, map or start of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from PIL import Image

from daguerre.atomic_io import free_path
from daguerre.cli.generation import check_outputs, generate_with_progress
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import choose_threads, open_any
from daguerre.cli.options import (
    ComputeDtype,
    Device,
    Height,
    NumImages,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Out,
    Seed,
    Size,
    Threads,
    Width,
    build_request,
    slug,
)
from daguerre.cli.parsing import UsageError, parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.images.output import GeneratedImages, write_image
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Completion, MapToImage, Task, TextToImage
from daguerre.progress import spinner
from daguerre.weights.catalog import find

if TYPE_CHECKING:
    from daguerre.models.latent_prior import LatentPrior


@dataclass(frozen=True)
class SampleOptions:
    """Sample images from a prior over codes, as `daguerre train prior` writes it.

    Several images also give a labelled grid. The paths of the written files are printed, one per line.
    """

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """Folder of the prior, or a published VQGAN file with its transformer."""
    class_: Annotated[str | None, tyro.conf.arg(name="class", help_behavior_hint="")] = None
    """Class name, for a prior conditioned on classes."""
    prompt: OptionalText = None
    """Text, for a prior conditioned on text; or "CLASS LEFT TOP RIGHT BOTTOM; …" for one conditioned on boxes."""
    map: OptionalPath = None
    """Condition map, for a prior conditioned on maps."""
    complete: OptionalPath = None
    """Image whose lower part is sampled again; a prior conditioned on maps also needs the --map of the whole image."""
    keep: float = Completion.keep
    """With --complete: share of the rows to keep."""
    temperature: float = Request.temperature
    """Sampling temperature; 0 is greedy (argmax)."""
    top_k: OptionalInt = Request.top_k
    """Sample only from the k most likely codes."""
    top_p: float = Request.top_p
    """Sample only from the smallest set of codes with this total probability (nucleus sampling)."""
    size: Size = None
    width: Width = None
    height: Height = None
    num_images: NumImages = Request.num_images
    seed: Seed = Request.seed
    out: Out = None
    device: Device = None
    dtype: ComputeDtype = "auto"
    threads: Threads = None

    def request(self) -> Request:
        """The request that these options describe. Raises DaguerreError for options that contradict each other and unreadable images."""
        if self.class_ is not None and self.prompt is not None:
            raise DaguerreError("--class and --prompt both set the condition; give one of them.")
        from daguerre.models.autoregressive import Sampling

        Sampling(self.temperature, self.top_k, self.top_p)  # checks the three values
        return build_request((self.class_ if self.class_ is not None else self.prompt or "",), self._task(), self)

    def _task(self) -> Task:
        condition_map = None if self.map is None else read_input(self.map)
        if self.complete is not None:
            return Completion(read_input(self.complete), self.keep, map=condition_map)
        return TextToImage() if condition_map is None else MapToImage(condition_map)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse_options(SampleOptions, arguments, "sample"))


def run(options: SampleOptions) -> None:
    """Sample the images and print their paths; all options are checked before the model is opened."""
    with usage_errors():
        find(options.model)
        request = options.request()
        name = f"{slug(request.prompts[0] or find(options.model).resolve().name)}-{request.seed}.png"
        out = options.out or free_path(Path(name), len(request.items))
        check_outputs({"--out": out}, request)
    choose_threads(options.threads)
    with spinner("opening the model"):
        model = open_prior(options)

    images = generate_with_progress(model, request)
    written = images.save(out)
    if len(images) > 1 or request.task.input_images:
        sheet = out if len(images) > 1 else out.with_stem(f"{out.stem}-grid")
        write_image(sheet, grid_with_inputs(request, images))
        written.append(sheet)
    for path in written:
        print(path)


def grid_with_inputs(request: Request, images: GeneratedImages) -> Image.Image:
    """The input images and then all generated images in one labelled grid."""
    from daguerre.data.images import flatten_alpha

    size = images[0].image.size
    inputs = {name: flatten_alpha(image.pixels).resize(size) for name, image in request.task.input_images.items()}
    names = ["map" if name == "map" or isinstance(request.task, MapToImage) else "input" for name in inputs]
    labels = [f"{prompt} · {seed}" if prompt else f"seed {seed}" for prompt, seed in request.items]
    return labelled_grid([*inputs.values(), *(image.image for image in images)], [*names, *labels])


def open_prior(options: SampleOptions) -> "LatentPrior":
    """Open the prior that the options name. Raises DaguerreError if there is none, or if it is a diffusion model."""
    model = open_any(options.model, None, options.device, options.dtype, offline=True)
    from daguerre.models.latent_prior import LatentPrior

    if not isinstance(model, LatentPrior):
        raise UsageError(f"'{options.model}' is a diffusion model, not a prior over codes; use `daguerre txt2img --model {options.model}`.")
    return model
