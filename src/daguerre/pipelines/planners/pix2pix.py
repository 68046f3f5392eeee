"""InstructPix2Pix: edit an image by an instruction, with guidance by text and by image (Brooks et al. 2022, arXiv:2211.09800, eq. 3):

    D = D(∅, ∅) + s_I·(D(∅, z) − D(∅, ∅)) + s_T·(D(c, z) − D(∅, z))

so the weights are s_T on (instruction, image), s_I − s_T on (negative, image) and 1 − s_I on (negative, no image).
"""

import torch
from torch import Tensor

from daguerre.conditioning import GuidedConditions
from daguerre.data.images import to_tensor
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, from_noise
from daguerre.pipelines.images.preprocess import flatten_input, resize
from daguerre.pipelines.tasks import InstructPix2Pix


def instruct_pix2pix(context: GenerationContext, task: InstructPix2Pix) -> SamplingPlan:
    """One pass from noise, with the image's latents as extra input channels at every step."""
    image = flatten_input(task.image)
    size = context.size_on(image)
    z = image_condition(context, to_tensor(resize(image, size, task.resize_mode))[None])
    with_image, without_image = add_conditioning(context, concat=z), add_conditioning(context, concat=torch.zeros_like(z))

    def edit(guided: GuidedConditions, scale: float) -> GuidedConditions:
        """The prompt's conditions and the negative, which is last, with the image; then the negative without it."""
        s_image, weights = task.image_guidance_scale, guided.weights
        conditions, _ = with_image(guided, scale)
        negative, _ = without_image(GuidedConditions(guided.conditions[-1:], [1.0]), scale)
        return GuidedConditions([*conditions, *negative], [*weights[:-1], weights[-1] - (1 - s_image), 1 - s_image])

    return SamplingPlan((Pass(size, context.sigmas(), from_noise(context), edit_conditions=edit),))


@torch.no_grad()
def image_condition(context: GenerationContext, x: Tensor) -> Tensor:
    """The latents (1, Z, h, w) of an image (1, 3, H, W) as these models take them: the posterior mean, not scaled."""
    autoencoder = context.model.autoencoder
    assert isinstance(autoencoder, AutoencoderKL)
    return autoencoder.posterior(x.to(context.model.device, context.model.dtype)).mean
