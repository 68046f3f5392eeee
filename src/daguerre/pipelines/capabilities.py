"""Which model can do what: a network's further input channels tell what it was trained for."""

from collections.abc import Mapping

from daguerre.conditioning.class_map_image import MapConditioner, PictureConditioner
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines.tasks import CODE_BY_CODE, TASKS, Task

EXAMPLES: Mapping[str, str] = {  # of each kind
    CODE_BY_CODE: "a prior over codes, from `daguerre train prior`",
    "plain": "the embedded model, Stable Diffusion 1, 2 and XL",
    "inpainting": "Stable Diffusion 1.5 inpainting, with nine input channels",
    "semantic": "latent diffusion's semantic synthesis, with a map of classes beside its latents",
    "variations": "Stable Diffusion image variations, with CLIP's picture tower",
    "instruct-pix2pix": "instruct-pix2pix, with eight input channels",
    "depth": "Stable Diffusion 2 depth, with five input channels",
    "upscaling": "the Stable Diffusion x4 upscaler, with seven input channels",
}


def kind(model: LatentDiffusion | LatentPrior) -> str:
    """What a model was trained for, a key of `EXAMPLES`, or another word where nothing here can use it."""
    if isinstance(model, LatentPrior):
        return CODE_BY_CODE
    if isinstance(model.conditioner, MapConditioner):
        return "semantic"
    if isinstance(model.conditioner, PictureConditioner):
        return "variations"
    Z = model.unet.config.out_channels
    kinds = {0: "plain", Z + 1: "inpainting", Z: "instruct-pix2pix", 1: "depth", 3: "upscaling"}
    return kinds.get(model.unet.config.in_channels - Z, "unknown")


def check_ability(model: LatentDiffusion | LatentPrior, task: Task) -> None:
    """Raise DaguerreError where a model cannot do a task; says which can, and what this one can do."""
    if (own := kind(model)) in task.kinds:
        return
    able = " or ".join(EXAMPLES[each] for each in task.kinds)
    tasks = [name for name, other in TASKS.items() if own in other.kinds]
    raise DaguerreError(
        f"The model {model.name!r} (of the kind {own}) cannot do {task.name}; take a model that can, such as {able}. "
        f"This one does {', '.join(tasks) or 'nothing that is known here'}."
    )
