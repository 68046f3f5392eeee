"""A picture changed as an instruction says, by a model that is shown it; two guidances are three voices (Brooks et al. 2022,
arXiv:2211.09800, eq. 3):

    D = D(∅, ∅) + s_I·(D(∅, z) − D(∅, ∅)) + s_T·(D(c, z) − D(∅, z))

so the weights are s_T on (instruction, picture), s_I − s_T on (negative, picture) and 1 − s_I on (negative, no picture).
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
    """One pass from noise, the network being shown the picture at every step."""
    image = flatten_input(task.image)
    size = context.size_on(image)
    z = image_condition(context, to_tensor(resize(image, size, task.resize_mode))[None])
    return SamplingPlan(
        (
            Pass(
                size,
                context.sigmas(),
                from_noise(context),
                edit_conditions=lambda voices: pix2pix_guidance(context, voices, z, task.image_guidance_scale),
            ),
        )
    )


@torch.no_grad()
def image_condition(context: GenerationContext, x: Tensor) -> Tensor:
    """The latent (1, Z, h, w) of a picture (1, 3, H, W) as these models are shown it: the mean, and not scaled."""
    autoencoder = context.model.autoencoder
    assert isinstance(autoencoder, AutoencoderKL)
    return autoencoder.posterior(x.to(context.model.device, context.model.dtype)).mean


def pix2pix_guidance(context: GenerationContext, voices: GuidedConditions, z: Tensor, scale: float) -> GuidedConditions:
    """The voices of a prompt, the last being its negative, all shown the latent z; then the negative shown nothing. scale: s_I."""
    conditions, weights = voices
    seen, _ = add_conditioning(context, concat=z)(voices)
    (blind,), _ = add_conditioning(context, concat=torch.zeros_like(z))(GuidedConditions([conditions[-1]], [1.0]))
    return GuidedConditions([*seen, blind], [*weights[:-1], weights[-1] - (1 - scale), 1 - scale])
