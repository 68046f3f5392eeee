"""`daguerre compare PROMPT…`: one labelled table of images over one or two settings; prints the path of the table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import randbelow
from typing import Annotated, Any

import tyro

from daguerre.atomic_io import free_path
from daguerre.cli.adapters import adapter_records
from daguerre.cli.generation import check_outputs, open_pipeline, warn_prompt
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import check_sampler
from daguerre.cli.options import (
    RANDOM_SEED,
    AdapterOptions,
    Height,
    NegativePrompt,
    OptionalPath,
    PipelineOptions,
    Prompts,
    Size,
    Width,
    parse_size,
    slug,
)
from daguerre.cli.parsing import UsageError, parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.comparison import COMPARED, Axis, check_comparison, compare, compared_requests
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import ImageToImage, TextToImage
from daguerre.progress import progress
from daguerre.runtime.allocator import tune_malloc

Whole = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]", help_behavior_hint="")]
Numbers = Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT [FLOAT ...]", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]", help_behavior_hint="")]


@dataclass(frozen=True)
class CompareOptions:
    """Generate a labelled table of images over one or two settings: give these several values, and every other one at most one.

    The file keeps the request of every image: `daguerre reproduce TABLE --cell ROW,COLUMN` generates one again.
    """

    prompt: Prompts
    """What the images show; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    steps: Whole = ()
    """Numbers of sampling steps. Default: 20."""
    guidance_scale: Numbers = ()
    """Classifier-free guidance scales. Default: the model's own."""
    sampler: Texts = ()
    """Samplers, as `daguerre models --samplers` lists them. Default: the model's, else dpmpp_2m."""
    spacing: Texts = ()
    """Noise levels to visit, as `daguerre models --samplers` lists them. Default: that of the sampler, else trailing."""
    seed: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["-s"], metavar="INT [INT ...]", help_behavior_hint="")] = ()
    """Seeds; -1 takes a random one. Default: 0 for all images."""
    image: OptionalPath = None
    """Start from this image, like `daguerre img2img`."""
    strength: Numbers = ()
    """Denoising strengths of --image, 0 to 1. Default: 0.8."""
    size: Size = None
    width: Width = None
    height: Height = None
    loading: Annotated[PipelineOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="model", help="")] = field(
        default_factory=PipelineOptions
    )
    adapters: Annotated[AdapterOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="adapter", help="")] = field(
        default_factory=AdapterOptions
    )
    out: Annotated[
        Path | None, tyro.conf.arg(aliases=["-o"], help="Output file of the table: .png, .webp or .jpg.", help_behavior_hint="")
    ] = None

    def comparison(self) -> tuple[Request, Axis | None, Axis]:
        """The request that all images share, and the axes: rows, if two settings have several values, and columns.

        Raises:
            DaguerreError: a value is out of range, or no setting or more than two have several values.
        """
        several_of = [name for name in COMPARED if isinstance(getattr(self, name, None), tuple)]
        given: dict[str, tuple[Any, ...]] = {name: values for name in several_of if (values := getattr(self, name))}
        given["seed"] = tuple(randbelow(2**32) if seed == RANDOM_SEED else seed for seed in self.seed or (Request.seed,))
        axes = [Axis(name, values) for name, values in given.items() if len(values) > 1]
        if not 1 <= len(axes) <= 2:
            several = ", ".join(f"{len(axis.values)} of {axis.field}" for axis in axes) or "one of each"
            raise DaguerreError(f"Give several values to one or two settings of {', '.join(several_of)}, not {several}.")
        if self.strength and self.image is None:
            raise DaguerreError("--strength needs an input image; give it with --image.")
        task = TextToImage() if self.image is None else ImageToImage(read_input(self.image))
        first = {name: values[0] for name, values in given.items()}
        if "strength" in first:
            task = replace(task, strength=first.pop("strength"))
        width, height = parse_size(self.size, self.width, self.height)
        shared = {"refiner_switch_at": self.loading.refiner_switch_at, "low_memory": self.loading.low_memory}
        base = Request(negative_prompt=self.negative_prompt, width=width, height=height, task=task, **shared, **first)
        base = replace(base, adapters=adapter_records(self.adapters, replace(base, prompt=given.get("prompt", base.prompt))))
        rows, columns = axes if len(axes) == 2 else (None, axes[0])
        for request in [cell for row in compared_requests(base, rows, columns) for cell in row]:
            check_sampler(request)
        return base, rows, columns


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(CompareOptions, arguments, "compare")
    with usage_errors():
        request, rows, columns = options.comparison()
        names = "-".join(axis.field.replace("_", "-") for axis in (rows, columns) if axis)
        out = options.out or free_path(Path(f"{slug(request.prompts[0])}-{names}.png"))
        check_outputs({"--out": out}, request)
    tune_malloc()
    model = open_pipeline(options.loading, request, request.adapters)

    from daguerre.models.latent_diffusion import LatentDiffusion

    if not isinstance(model, LatentDiffusion):
        raise UsageError(f"'{options.loading.model}' is a prior over codes; `daguerre compare` needs a diffusion model.")
    with usage_errors():
        check_comparison(model, request, rows, columns)
    prompts = next((axis.values for axis in (rows, columns) if axis and axis.field == "prompt"), request.prompts)
    warn_prompt(model, replace(request, prompt=prompts))
    with progress() as bar:
        task = bar.add_task("generating", total=None)
        result = compare(model, request, rows, columns, lambda done, total: bar.update(task, completed=done, total=total))
    print(result.save(out))
