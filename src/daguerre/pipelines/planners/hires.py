"""A picture made in the model's own size, where it composes best, and drawn again larger: txt2img, enlarge, img2img."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daguerre.pipelines.context import Pass, Plan, Stage, from_noise, noised
from daguerre.pipelines.decode import to_image
from daguerre.pipelines.images.preprocess import to_pixels
from daguerre.pipelines.tasks import Hires


def hires(stage: Stage, task: Hires) -> Plan:
    """One pass from noise, and one from its enlarged pictures under noise."""
    small = stage.size
    large = round(small[0] * task.scale / stage.f) * stage.f, round(small[1] * task.scale / stage.f) * stage.f

    def begin(noise: Tensor, sigma: Tensor, before: Tensor | None) -> Tensor:
        assert before is not None
        return noised(enlarged(stage, task, before, noise), noise, sigma)

    return Plan((Pass(small, stage.sigmas(), from_noise(stage)), Pass(large, stage.sigmas(task.strength), begin)))


def enlarged(stage: Stage, task: Hires, z: Tensor, like: Tensor) -> Tensor:
    """Latents (B, Z, h, w) in the size of others (B, Z, H, W)."""
    if task.through == "latents":
        return F.interpolate(z, size=like.shape[-2:], mode="bilinear", antialias=True)
    size = like.shape[-1] * stage.f, like.shape[-2] * stage.f
    pictures = stage.model.autoencoder.decode(z.to(stage.model.dtype))
    images = [to_image(picture).resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    return stage.encode(torch.cat([to_pixels(image) for image in images])).to(like)
