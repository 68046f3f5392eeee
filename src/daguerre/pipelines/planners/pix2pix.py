"""A picture changed as an instruction says, by a model that is shown it; two guidances are three voices (Brooks et al. 2022,
arXiv:2211.09800, eq. 3):

    D = D(∅, ∅) + s_I·(D(∅, z) − D(∅, ∅)) + s_T·(D(c, z) − D(∅, z))

so the weights are s_T on (instruction, picture), s_I − s_T on (negative, picture) and 1 − s_I on (negative, no picture).
"""

import torch
from torch import Tensor

from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.pipelines.context import Pass, Plan, Stage, Voices, also_told, from_noise
from daguerre.pipelines.images.preprocess import fitted, opaque, to_pixels
from daguerre.pipelines.tasks import InstructPix2Pix


def instruct_pix2pix(stage: Stage, task: InstructPix2Pix) -> Plan:
    """One pass from noise, the network being shown the picture at every step."""
    image = opaque(task.picture)
    size = stage.size_on(image)
    z = shown(stage, to_pixels(fitted(image, size, task.fit)))
    return Plan((Pass(size, stage.sigmas(), from_noise(stage), tell=lambda voices: guided(stage, voices, z, task.picture_guidance)),))


@torch.no_grad()
def shown(stage: Stage, x: Tensor) -> Tensor:
    """The latent (1, Z, h, w) of a picture (1, 3, H, W) as these models are shown it: the mean, and not scaled."""
    autoencoder = stage.model.autoencoder
    assert isinstance(autoencoder, AutoencoderKL)
    return autoencoder.moments(x.to(stage.model.device, stage.model.dtype)).mean


def guided(stage: Stage, voices: Voices, z: Tensor, scale: float) -> Voices:
    """The voices of a prompt, the last being its negative, all shown the latent z; then the negative shown nothing. scale: s_I."""
    conditions, weights = voices
    seen, _ = also_told(stage, concat=z)(voices)
    (blind,), _ = also_told(stage, concat=torch.zeros_like(z))(([conditions[-1]], [1.0]))
    return [*seen, blind], [*weights[:-1], weights[-1] - (1 - scale), 1 - scale]
