"""`daguerre sample --model M`: sample from any model, with or without a class, text, map, or image to start from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from PIL import Image

from daguerre.atomic_io import free_path
from daguerre.cli.generation import animation_frame, check_outputs, generate_with_progress
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import check_sampler, choose_threads, open_any
from daguerre.cli.options import (
    AnimationContent,
    ComputeDtype,
    Device,
    Height,
    NumImages,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Out,
    SamplingOptions,
    Size,
    Threads,
    Width,
    build_request,
    slug,
    with_preset,
)
from daguerre.cli.parsing import UsageError, parse_options, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.images.output import GeneratedImages, save_animation, write_image
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Completion, Inversion, MapToImage, Task, TextToImage
from daguerre.progress import spinner
from daguerre.weights.catalog import find

if TYPE_CHECKING:
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior
    from daguerre.pipelines import Step
    from daguerre.pipelines.planners.vq_prior import CodeStep


@dataclass(frozen=True)
class SampleOptions:
    """Sample images from a model that you trained: a diffusion model, or a prior over codes.

    Several images also give a labelled grid. The paths of the written files are printed, one per line.
    """

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """A name from `daguerre models`, the folder of a model, or a published VQGAN file with its transformer."""
    class_: Annotated[str | None, tyro.conf.arg(name="class", help_behavior_hint="")] = None
    """Class name, or its number, for a model conditioned on classes."""
    prompt: OptionalText = None
    """Text, for a model conditioned on text; or "CLASS LEFT TOP RIGHT BOTTOM; …" for a prior conditioned on boxes."""
    map: OptionalPath = None
    """Condition map, for a prior conditioned on maps."""
    complete: OptionalPath = None
    """Image whose lower part is sampled again; a prior conditioned on maps also needs the --map of the whole image."""
    keep: float = Completion.keep
    """With --complete: share of the rows to keep."""
    invert: OptionalPath = None
    """Image whose noise is found by DDIM inversion and sampled again, with a diffusion model; with a class or text it changes."""
    invert_to: OptionalPath = None
    """With --invert: a second image; the --num-images images lie between the two."""
    temperature: float = Request.temperature
    """Sampling temperature of a prior; 0 is greedy (argmax)."""
    top_k: OptionalInt = Request.top_k
    """With a prior: sample only from the k most likely codes."""
    top_p: float = Request.top_p
    """With a prior: sample only from the smallest set of codes with this total probability (nucleus sampling)."""
    size: Size = None
    width: Width = None
    height: Height = None
    num_images: NumImages = Request.num_images
    sampling: Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="diffusion models", help="")] = field(
        default_factory=SamplingOptions
    )
    out: Out = None
    animation: OptionalPath = None
    """Also save an animation of the first image's sampling: .webp or .png."""
    animation_content: AnimationContent = "x0"
    """What the animation shows after each step of a diffusion model: the predicted image (x0), the noisy one (x_t), or both."""
    device: Device = None
    dtype: ComputeDtype = "auto"
    threads: Threads = None

    def requests(self) -> tuple[Request, ...]:
        """The requests that these options describe: one, or one for each image between two inverted images.

        Raises:
            DaguerreError: options contradict each other, or an image cannot be read.
        """
        if self.animation is None and self.animation_content != "x0":
            raise DaguerreError("--animation-content needs an animation; give its file with --animation.")
        if self.invert is None and self.invert_to is not None:
            raise DaguerreError("--invert-to needs the first image; give it with --invert.")
        if self.invert is not None and (self.map or self.complete):
            raise DaguerreError("--invert excludes --map and --complete; give one of them.")
        request = self.request()
        if self.invert is None:
            return (request,)
        task = Inversion(read_input(self.invert), None if self.invert_to is None else read_input(self.invert_to))
        if task.other is None:
            return (replace(request, task=task),)
        count = request.num_images
        weights = [i / (count - 1) for i in range(count)] if count > 1 else [task.weight]
        return tuple(replace(request, num_images=1, task=replace(task, weight=weight)) for weight in weights)

    def request(self) -> Request:
        """The request without inversion. Raises DaguerreError for options that contradict each other and unreadable images."""
        if self.class_ is not None and self.prompt is not None:
            raise DaguerreError("--class and --prompt both set the condition; give one of them.")
        from daguerre.models.autoregressive import Sampling

        Sampling(self.temperature, self.top_k, self.top_p)  # checks the three values
        request = build_request((self.class_ if self.class_ is not None else self.prompt or "",), self._task(), self, self.sampling)
        return with_preset(request, self.sampling, self.model)

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
        requests = options.requests()
        request = requests[0]
        for each in requests:
            check_sampler(each)
        name = f"{slug(request.prompts[0] or find(options.model).resolve().name)}-{request.seed}.png"
        count = sum(len(each.items) for each in requests)
        out = options.out or free_path(Path(name), count)
        check_outputs({"--out": out, "--animation": options.animation}, replace(request, num_images=count))
    choose_threads(options.threads)
    with spinner("opening the model"):
        model = open_any(options.model, None, options.device, options.dtype, offline=True)
    check_request(model, request, options)

    frames: list[Image.Image] = []

    def on_step(step: "Step | CodeStep") -> None:
        if options.animation is not None:
            frames.append(animation_frame(step, [""], options.animation_content))

    images = GeneratedImages(image for each in requests for image in generate_with_progress(model, each, on_step))
    written = images.save(out)
    if len(images) > 1 or request.task.input_images:
        sheet = out if len(images) > 1 else out.with_stem(f"{out.stem}-grid")
        write_image(sheet, grid_with_inputs(requests, images))
        written.append(sheet)
    if options.animation is not None:
        written.append(save_animation(options.animation, frames))
    for path in written:
        print(path)


def check_request(model: "LatentDiffusion | LatentPrior", request: Request, options: SampleOptions) -> None:
    """Check what the request has no effect on in this kind of model.

    Raises:
        UsageError: a diffusion model has settings of a prior, or a model without classes and texts has one.
    """
    from daguerre.conditioning.class_map_image import UnconditionalConditioner
    from daguerre.models.latent_diffusion import LatentDiffusion

    if not isinstance(model, LatentDiffusion):
        if options.animation_content != "x0":
            raise UsageError("A prior over codes samples without noise, so an animation shows only x0; remove --animation-content.")
        return
    given = [name for name in ("temperature", "top_k", "top_p") if getattr(request, name) != getattr(Request, name)]
    if given:
        raise UsageError(f"{', '.join(given)}: no effect on a diffusion model, only on priors over codes; leave that out.")
    if isinstance(model.conditioner, UnconditionalConditioner) and any(request.prompts):
        raise UsageError(f"The model {model.name!r} was trained without classes and texts; remove --class and --prompt.")


def grid_with_inputs(requests: Sequence[Request], images: GeneratedImages) -> Image.Image:
    """The input images and then all generated images in one labelled grid."""
    from daguerre.data.images import flatten_alpha

    size, task = images[0].image.size, requests[0].task
    inputs = {name: flatten_alpha(image.pixels).resize(size) for name, image in task.input_images.items()}
    names = ["map" if name == "map" or isinstance(task, MapToImage) else "input" for name in inputs]
    labels = [image_label(each, prompt, seed) for each in requests for prompt, seed in each.items]
    return labelled_grid([*inputs.values(), *(image.image for image in images)], [*names, *labels])


def image_label(request: Request, prompt: str, seed: int) -> str:
    """What distinguishes an image from the others of its sheet."""
    if isinstance(request.task, Inversion):
        return f"weight {request.task.weight:.2f}" if request.task.other else prompt or "inverted"
    return f"{prompt} · {seed}" if prompt else f"seed {seed}"
