"""A picture drawn over: x = z + σ_k·ε, and then the sampler on σ_k … σ_N (SDEdit: Meng et al. 2021, arXiv:2108.01073, algorithm 1)."""

from daguerre.pipelines.context import Pass, Plan, Stage, from_latents
from daguerre.pipelines.images.preprocess import fitted, opaque, to_pixels
from daguerre.pipelines.tasks import ImageToImage


def img2img(stage: Stage, task: ImageToImage) -> Plan:
    """One pass from the picture under noise."""
    image = opaque(task.picture)
    size = stage.size_on(image)
    z = stage.encode(to_pixels(fitted(image, size, task.fit)), sample=task.latent == "sample")
    return Plan((Pass(size, stage.sigmas(task.strength), from_latents(stage, z, task.strength)),))
