"""What all commands that make pictures share: their options, and the way from a request to files."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING, Literal

from daguerre.atomic_io import check_writable
from daguerre.cli.model_loading import open_any
from daguerre.cli.options import (
    Dtype,
    OptionalFloat,
    OptionalPath,
    OptionalText,
    PredictionFlag,
    parse_size,
    parse_variation,
    slug,
)
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.images.output import ANIMATION_FORMATS, check_suffix, numbered_paths, save_animation, write_image
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Task, TextToImage
from daguerre.progress import spinner, track_steps
from daguerre.runtime.allocator import tune_malloc

if TYPE_CHECKING:
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior
    from daguerre.pipelines import GeneratedImages, Step
    from daguerre.pipelines.planners.vq_prior import CodeStep

RANDOM = -1


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of every command by which a diffusion model draws: what is asked for, of which model, and where it goes."""

    negative_prompt: str = Request.negative_prompt
    """What to stay away from."""
    steps: int = Request.steps
    """How many noise levels the sampler visits; more is slower and finer."""
    sampler: OptionalText = Request.sampler
    """How to go from one noise level to the next; `daguerre models --samplers` lists them. "DPM++ 2M Karras" is understood, too."""
    guidance_scale: OptionalFloat = None
    """How much the prompt weighs, 1 no more than the model learned; if not given what suits the model: 2 the embedded one, 5 others."""
    seed: int = Request.seed
    """Of the first picture's noise; the next ones count on from it. -1 draws one."""
    num_images: int = Request.num_images
    """How many pictures of each prompt."""
    size: OptionalText = None
    """In pixels, one side (64) or WIDTHxHEIGHT (96x64); if not given the model's own, or one that suits the picture it is given."""
    out: OptionalPath = None
    """Where to write: .png, .webp or .jpg; several pictures get -1, -2, … after the name. What is made of a folder goes to this folder."""
    model: OptionalText = None
    """A name from `daguerre models`, a folder, a checkpoint file, or OWNER/NAME on the hub; the embedded model if not given."""
    device: OptionalText = None
    """cpu or cuda; cuda where there is one if not given."""
    dtype: Dtype = "auto"
    """What the networks compute in; auto is what is fastest here."""
    offline: bool = False
    """Of the hub, look only at what was fetched before."""

    def request_for(self, prompts: Sequence[str], task: Task | None = None) -> Request:
        """The request that these options are, for prompts and a task."""
        width, height = parse_size(self.size)
        return Request(
            prompt=prompts[0] if len(prompts) == 1 else tuple(prompts),
            seed=randbelow(2**32) if self.seed == RANDOM else self.seed,
            width=width,
            height=height,
            task=task or TextToImage(),
            **{name: getattr(self, name) for name in ("negative_prompt", "steps", "sampler", "guidance_scale", "num_images")},
        )


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingOptions):
    """Options of every command that makes pictures alone."""

    spacing: OptionalText = Request.spacing
    """Which noise levels to visit; `daguerre models --samplers` lists them. Trailing if neither this nor the sampler says."""
    eta: OptionalFloat = Request.eta
    """The share of fresh noise in each step, 0 to 1, for the samplers that take it; the sampler's own if not given."""
    variation: OptionalText = None
    """SEED:WEIGHT, such as 8:0.3: how far the noise is moved towards that of another seed; of several pictures that seed counts on."""
    tiling: Literal["none", "both", "x", "y"] = Request.tiling
    """Pictures that continue over their edges, as tiles do."""
    grid: bool = False
    """Make a labelled grid of one prompt's pictures, too, as is made of several prompts'; it has the name without numbers."""
    vae: OptionalText = None
    """An autoencoder's folder or file, in place of the model's own."""
    refiner: OptionalText = None
    """A model of the same latents that walks the last steps: SDXL's refiner, named as --model is."""
    refiner_switch_at: float = Request.refiner_switch_at
    """With --refiner, the share of the noise levels after which it takes over."""
    prediction_type: PredictionFlag = "auto"
    """What the model predicts, where its file does not say."""
    animation: OptionalPath = None
    """Also write an animation of the picture predicted at every step: .webp or .png."""
    preview: OptionalPath = None
    """Write a small picture of every step's prediction to this file while it runs."""
    low_memory: bool = Request.low_memory
    """Take less memory and more time: one condition at a time, decoding in tiles. Done unasked where a run would not fit."""

    def request_for(self, prompts: Sequence[str], task: Task | None = None) -> Request:
        more = {name: getattr(self, name) for name in ("spacing", "eta", "tiling", "refiner_switch_at", "low_memory")}
        return replace(super().request_for(prompts, task), variation=parse_variation(self.variation), **more)


def generate_and_save(options: GenerationOptions, request: Request, wordless: Path | None = None) -> None:
    """Make a request's pictures and print where they are; what can be wrong is told before the work begins.

    wordless: where they go if neither --out nor a word of the prompt says how to call them.
    """
    named = wordless if wordless and not any(request.prompts) else Path(f"{slug(request.prompts[0])}-{request.seed}.png")
    out = options.out or named
    check_outputs(output_paths(options, out), request)
    tune_malloc()
    model = open_for(options, request)
    warn_prompt(model, request)
    for path in write_outputs(model, options, request, out):
        print(path)


def output_paths(options: GenerationOptions, out: Path) -> Mapping[str, Path | None]:
    """What the options write beside each other, by option."""
    return {"--out": out, "--preview": options.preview, "--film": options.animation}


def check_outputs(outputs: Mapping[str, Path | None], request: Request) -> None:
    """Raise DaguerreError where a file cannot be written, or two would be written to one place, or over a picture that is given."""
    taken = {Path(given.path).resolve(): f"the {name} it is made of" for name, given in request.task.input_images.items() if given.path}
    for option, path in outputs.items():
        if path is None:
            continue
        check_writable(check_suffix(path, ANIMATION_FORMATS if option == "--film" else OUTPUT_FORMATS))
        for place in [path, *(numbered_paths(path, len(request.items)) if option == "--out" else [])]:  # the name itself may be a grid's
            if (other := taken.setdefault(place.resolve(), option)) != option:
                raise DaguerreError(f"{option} '{place}' is {other}, too; give each its own file.")


def open_for(options: GenerationOptions, request: "Request | None" = None) -> "LatentDiffusion | LatentPrior":
    """The model that the options name, for one request or for many."""
    with spinner("opening the model"):
        return open_any(
            options.model,
            options.vae,
            options.device,
            options.dtype,
            offline=options.offline,
            prediction=options.prediction_type,
            refiner=options.refiner,
            request=request,
            stay=("unet",) if options.animation else (),  # which decodes after every step
        )


def warn_prompt(model: "LatentDiffusion | LatentPrior", request: Request) -> None:
    """Say what in the prompts may not mean what was wanted, and where it stands, to a model that reads the prompt language."""
    from daguerre.conditioning import Conditioner, Prompt
    from daguerre.conditioning.syntax import caret_message
    from daguerre.models.latent_diffusion import LatentDiffusion

    if not (isinstance(model, LatentDiffusion) and isinstance(model.conditioner, Conditioner)):
        return
    prompts = [*map(Prompt.parse, request.prompts), Prompt.parse(request.negative_prompt, composed=False)]
    for prompt in prompts:
        for slip in prompt.warnings:
            print(
                f"daguerre: note, character {slip.at + 1} of the prompt:\n{caret_message(prompt.source, slip.at, slip.message)}",
                file=sys.stderr,
            )


def generate_with_progress(
    model: "LatentDiffusion | LatentPrior", request: Request, look: "Callable[[Step | CodeStep], None] | None" = None
) -> "GeneratedImages":
    """The pictures of a request, while it is shown how far they are; `look` sees every step."""
    from daguerre.pipelines import GeneratedImages, stream

    pictures = GeneratedImages()
    for step in track_steps(stream(model, request), "making"):
        if look is not None:
            look(step)
        pictures = step.images or pictures
    return pictures


def write_outputs(model: "LatentDiffusion | LatentPrior", options: GenerationOptions, request: Request, out: Path) -> list[Path]:
    """Make a request's pictures and write them, with film and preview where they are asked for; returns what was written."""
    frames, labels = [], [prompt for prompt, _ in request.items]

    def look(step: "Step | CodeStep") -> None:
        if options.animation:
            frames.append(labelled_grid([step.decode(i) for i in range(len(labels))], labels) if len(labels) > 1 else step.decode())
        if options.preview:
            write_image(options.preview, step.preview())

    pictures = generate_with_progress(model, request, look)
    written = pictures.save(out)
    if len(request.prompts) > 1 or options.grid:
        written.append(pictures.grid().save(out))
    if options.animation:
        written.append(save_animation(options.animation, frames))
    return written
