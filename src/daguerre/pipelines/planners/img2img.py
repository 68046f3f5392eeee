"""Image to image: x = z + σ_k·ε, then the sampler on σ_k … σ_N (SDEdit: Meng et al. 2021, arXiv:2108.01073, algorithm 1)."""

from daguerre.data.images import to_tensor
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, from_latents
from daguerre.pipelines.images.preprocess import flatten_input, resize
from daguerre.pipelines.tasks import ImageToImage


def img2img(context: GenerationContext, task: ImageToImage) -> SamplingPlan:
    """One pass that starts from the image with noise added."""
    image = flatten_input(task.image)
    size = context.size_on(image)
    z = context.encode(to_tensor(resize(image, size, task.resize_mode))[None], sample=task.latent == "sample")
    return SamplingPlan((Pass(size, context.sigmas(task.strength), from_latents(context, z, task.strength)),))
