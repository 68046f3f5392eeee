"""Which tasks a model can do."""

from collections.abc import Mapping

from daguerre.conditioning.class_map_image import ConcatConditioner, ImageConditioner, LayoutConditioner, MapConditioner
from daguerre.conditioning.prior_prefix import LayoutPrefix
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.model_task import CONCAT_TASKS, ModelTask, task_by_channels
from daguerre.pipelines.tasks import TASKS, Task

EXAMPLE_MODELS: Mapping[ModelTask, str] = {
    "vq-prior": "an autoregressive prior, from `daguerre train prior`",
    "text-to-image": "the embedded model, Stable Diffusion 1, 2 and XL",
    "inpainting": "Stable Diffusion 1.5 inpainting, with nine input channels",
    "semantic": "latent diffusion's semantic synthesis, which takes a class map",
    "map": "one from `daguerre train ldm --condition map`",
    "layout": "latent diffusion's layout-to-image, or one from `daguerre train ldm --condition layout`",
    "colorization": "one from `daguerre train ldm --condition grey`",
    "image-variation": "Stable Diffusion image variations, with a CLIP image encoder",
    "instruct-pix2pix": "instruct-pix2pix, with eight input channels",
    "depth": "Stable Diffusion 2 depth, with five input channels",
    "upscaling": "the Stable Diffusion x4 upscaler, with seven input channels",
}


def model_task(model: LatentDiffusion | LatentPrior) -> ModelTask | None:
    """What a model was trained for; None for a UNet with an unknown number of input channels."""
    if isinstance(model, LatentPrior):
        return "vq-prior"
    if isinstance(model.conditioner, ConcatConditioner):
        return CONCAT_TASKS[model.conditioner.kind]
    if isinstance(model.conditioner, MapConditioner):
        return "semantic"
    if isinstance(model.conditioner, ImageConditioner):
        return "image-variation"
    return task_by_channels(model.unet.config.in_channels, model.latent_channels)


def possible_tasks(model: LatentDiffusion | LatentPrior) -> tuple[str, ...]:
    """The names of the tasks that a model can do."""
    is_layout = isinstance(model.prefix if isinstance(model, LatentPrior) else model.conditioner, LayoutConditioner | LayoutPrefix)
    kinds = (model_task(model), *(("layout",) if is_layout else ()))
    return tuple(name for name, task in TASKS.items() if any(kind in task.model_tasks for kind in kinds))


def check_capability(model: LatentDiffusion | LatentPrior, task: Task) -> None:
    """Raise DaguerreError if the model cannot do the task; the error names models that can, and the tasks of this one."""
    possible, trained_for = possible_tasks(model), model_task(model)
    if task.name in possible:
        return
    examples = " or ".join(EXAMPLE_MODELS[each] for each in task.model_tasks)
    raise DaguerreError(
        f"The model {model.name!r} (a model for {trained_for or 'an unknown task'}) cannot do {task.name}; "
        f"take a model that can, such as {examples}. This one does {', '.join(possible) or 'none of the tasks'}."
    )
