"""From a request to files: what all commands that generate images share."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daguerre.atomic_io import check_writable, free_path, numbered_paths
from daguerre.cli.model_loading import choose_threads, open_any
from daguerre.cli.options import AnimationContent, GenerationOptions, PipelineOptions, slug
from daguerre.cli.parsing import UsageError, usage_errors
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import image_table, labelled_grid
from daguerre.pipelines.images.output import ANIMATION_FORMATS, check_suffix, save_animation, write_image
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS
from daguerre.pipelines.request import Request
from daguerre.progress import spinner, track_steps
from daguerre.runtime.allocator import tune_malloc
from daguerre.weights.catalog import ASSETS, INDEX
from daguerre.weights.vocabulary import Vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

    from daguerre.adapters.record import AdapterRecord
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior
    from daguerre.pipelines import GeneratedImages, Step
    from daguerre.pipelines.planners.vq_prior import CodeStep


def generate_and_save(options: GenerationOptions, build: Callable[[], Request], fallback: Path | None = None) -> None:
    """Generate the images of a request and print their paths; all options are checked before the model is opened.

    Args:
        build: returns the request; its errors are usage errors.
        fallback: the output file if neither --out nor the prompt gives a name.
    """
    with usage_errors():
        request = build()
        if options.output.animation is None and options.output.animation_content != "x0":
            raise DaguerreError("--animation-content needs an animation; give its file with --animation.")
        from_prompt = Path(f"{slug(request.prompts[0])}-{request.seed}.png")
        name = fallback if fallback and not any(request.prompts) else from_prompt
        out = options.output.out or free_path(name, len(request.items))
        check_outputs(output_paths(options, out), request)
    tune_malloc()
    model = open_for(options, request)
    from daguerre.models.latent_prior import LatentPrior

    if options.output.animation_content != "x0" and isinstance(model, LatentPrior):
        raise UsageError("A prior over codes samples without noise, so an animation shows only x0; remove --animation-content.")
    warn_prompt(model, request)
    for path in write_outputs(model, options, request, out):
        print(path)


def output_paths(options: GenerationOptions, out: Path) -> Mapping[str, Path | None]:
    """The files that the options write, by option."""
    return {"--out": out, "--preview": options.output.preview, "--animation": options.output.animation}


def check_outputs(outputs: Mapping[str, Path | None], request: Request) -> None:
    """Check that every file can be written, and that none overwrites another one or an input image.

    Raises:
        DaguerreError: names the option and the file.
    """
    taken = {os.path.realpath(image.path): f"the input {name}" for name, image in request.task.input_images.items() if image.path}
    for option, path in outputs.items():
        if path is None:
            continue
        check_suffix(path, ANIMATION_FORMATS if option == "--animation" else OUTPUT_FORMATS)
        for file in [path, *(numbered_paths(path, len(request.items)) if option == "--out" else [])]:  # a grid has the name itself
            check_writable(file)
            if (other := taken.setdefault(os.path.realpath(file), option)) != option:
                raise DaguerreError(f"{option} '{file}' is also {other}; give each its own file.")


def open_for(
    options: GenerationOptions, request: Request | None = None, adapters: "Sequence[AdapterRecord]" = ()
) -> "LatentDiffusion | LatentPrior":
    """Open the model that the options name, for one request or for many, with the adapters of the request or the given ones."""
    keep_loaded = ("unet",) if options.output.animation else ()  # an animation decodes after every step
    return open_pipeline(options.loading, request, adapters if request is None else request.adapters, keep_loaded)


def open_pipeline(
    loading: PipelineOptions, request: Request | None, adapters: "Sequence[AdapterRecord]", keep_loaded: Sequence[str] = ()
) -> "LatentDiffusion | LatentPrior":
    """Choose the number of threads and open the model of the options; arguments as in `open_any`."""
    choose_threads(loading.threads)
    with spinner("opening the model"):
        return open_any(
            loading.model,
            loading.vae,
            loading.device,
            loading.dtype,
            offline=loading.offline,
            prediction=loading.prediction_type,
            refiner=loading.refiner,
            request=request,
            adapters=adapters,
            keep_loaded=keep_loaded,
            engine=loading.engine,
        )


def warn_prompt(model: "LatentDiffusion | LatentPrior", request: Request) -> None:
    """Print a note for each part of the prompts that may not mean what was intended, if the model reads the prompt language.

    One line names the words that the model's vocabulary lacks, if its folder has one.
    """
    from daguerre.conditioning import Conditioner, Prompt
    from daguerre.conditioning.syntax import caret_message
    from daguerre.models.latent_diffusion import LatentDiffusion

    if not (isinstance(model, LatentDiffusion) and isinstance(model.conditioner, Conditioner)):
        return
    with usage_errors():
        prompts = [*map(Prompt.parse, request.prompts), Prompt.parse(request.negative_prompt, composed=False)]
    for prompt in prompts:
        for warning in prompt.warnings:
            text = caret_message(prompt.source, warning.at, warning.message)
            print(f"daguerre: note, character {warning.at + 1} of the prompt:\n{text}", file=sys.stderr)
    folder = next((parent for file in model.files for parent in file.parents if (parent / INDEX).is_file()), None)
    if folder is not None and (vocabulary := Vocabulary.read(folder)):
        lines = (prompt.at(step, request.steps) for prompt in prompts[:-1] for step in range(request.steps))
        texts = dict.fromkeys(piece.text for parts in lines for line in parts for segment in line for piece in segment)
        if note := vocabulary.note(folder.name if folder.parent == ASSETS else shlex.quote(str(folder)), texts):
            print(f"daguerre: note: {note}", file=sys.stderr)


def generate_with_progress(
    model: "LatentDiffusion | LatentPrior", request: Request, on_step: "Callable[[Step | CodeStep], None] | None" = None
) -> "GeneratedImages":
    """Generate the images of a request behind a progress bar; `on_step` is called with every step.

    Raises:
        UsageError: the request does not fit the model.
    """
    from daguerre.pipelines import GeneratedImages, stream

    with usage_errors():
        steps = stream(model, request)
    images = GeneratedImages()
    for step in track_steps(steps, "generating"):
        if on_step is not None:
            on_step(step)
        images = step.images or images
    return images


def animation_frame(step: "Step | CodeStep", prompts: Sequence[str], content: AnimationContent) -> "Image":
    """The frame of an animation after one step: the image, or a labelled grid. Labels stay the same, so that all frames have one size."""
    from daguerre.pipelines import Step

    if content == "x0" or not isinstance(step, Step):
        images = [step.decode(i) for i in range(len(prompts))]
        return labelled_grid(images, prompts) if len(images) > 1 else images[0]
    noisy = [step.decode_noisy(i) for i in range(len(prompts))]
    if content == "x_t":
        return labelled_grid(noisy, prompts) if len(noisy) > 1 else noisy[0]
    pairs = [[x_t, step.decode(i)] for i, x_t in enumerate(noisy)]
    return image_table(pairs, columns=["x_t", "predicted x0"], rows=prompts if len(prompts) > 1 else ()).image


def write_outputs(model: "LatentDiffusion | LatentPrior", options: GenerationOptions, request: Request, out: Path) -> list[Path]:
    """Generate the images of a request and write them, with grid, animation and preview as the options ask; returns the paths."""
    output, labels = options.output, [prompt for prompt, _ in request.items]
    frames = []

    def on_step(step: "Step | CodeStep") -> None:
        if output.animation:
            frames.append(animation_frame(step, labels, output.animation_content))
        if output.preview:
            write_image(output.preview, step.preview())

    images = generate_with_progress(model, request, on_step)
    written = images.save(out)
    if len(request.prompts) > 1 or output.grid:
        written.append(images.grid().save(out))
    if output.animation:
        written.append(save_animation(output.animation, frames))
    return written
