"""Which model can do what: a network's further input channels tell what it was trained for."""

from collections.abc import Mapping

from daguerre.conditioning.class_map_image import ImageConditioner, MapConditioner
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines.tasks import TASKS, VQ_PRIOR, Task

EXAMPLE_MODELS: Mapping[str, str] = {  # of each kind
    VQ_PRIOR: "a prior over codes, from `daguerre train prior`",
    "text-to-image": "the embedded model, Stable Diffusion 1, 2 and XL",
    "inpainting": "Stable Diffusion 1.5 inpainting, with nine input channels",
    "semantic": "latent diffusion's semantic synthesis, with a map of classes beside its latents",
    "image-variation": "Stable Diffusion image variations, with CLIP's picture tower",
    "instruct-pix2pix": "instruct-pix2pix, with eight input channels",
    "depth": "Stable Diffusion 2 depth, with five input channels",
    "upscaling": "the Stable Diffusion x4 upscaler, with seven input channels",
}


def model_task(model: LatentDiffusion | LatentPrior) -> str:
    """What a model was trained for, a key of `EXAMPLES`, or another word where nothing here can use it."""
    if isinstance(model, LatentPrior):
        return VQ_PRIOR
    if isinstance(model.conditioner, MapConditioner):
        return "semantic"
    if isinstance(model.conditioner, ImageConditioner):
        return "image-variation"
    Z = model.unet.config.out_channels
    kinds = {0: "text-to-image", Z + 1: "inpainting", Z: "instruct-pix2pix", 1: "depth", 3: "upscaling"}
    return kinds.get(model.unet.config.in_channels - Z, "unknown")


def check_capability(model: LatentDiffusion | LatentPrior, task: Task) -> None:
    """Raise DaguerreError where a model cannot do a task; says which can, and what this one can do."""
    if (own := model_task(model)) in task.kinds:
        return
    able = " or ".join(EXAMPLE_MODELS[each] for each in task.kinds)
    tasks = [name for name, other in TASKS.items() if own in other.kinds]
    raise DaguerreError(
        f"The model {model.name!r} (of the kind {own}) cannot do {task.name}; take a model that can, such as {able}. "
        f"This one does {', '.join(tasks) or 'nothing that is known here'}."
    )
