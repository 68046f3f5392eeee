"""A picture made in the model's own size, where it composes best, and drawn again larger: txt2img, enlarge, img2img."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daguerre.data.images import to_image, to_tensor
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_noise_at, from_noise
from daguerre.pipelines.tasks import Hires


def hires(stage: GenerationContext, task: Hires) -> SamplingPlan:
    """One pass from noise, and one from its enlarged pictures under noise."""
    small = stage.image_size
    large = (
        round(small[0] * task.scale / stage.downsample_factor) * stage.downsample_factor,
        round(small[1] * task.scale / stage.downsample_factor) * stage.downsample_factor,
    )

    def begin(noise: Tensor, sigma: Tensor, before: Tensor | None) -> Tensor:
        assert before is not None
        return add_noise_at(upscale_latents(stage, task, before, noise), noise, sigma)

    return SamplingPlan((Pass(small, stage.sigmas(), from_noise(stage)), Pass(large, stage.sigmas(task.strength), begin)))


def upscale_latents(stage: GenerationContext, task: Hires, z: Tensor, like: Tensor) -> Tensor:
    """Latents (B, Z, h, w) in the size of others (B, Z, H, W)."""
    if task.upscaler == "latents":
        return F.interpolate(z, size=like.shape[-2:], mode="bilinear", antialias=True)
    size = like.shape[-1] * stage.downsample_factor, like.shape[-2] * stage.downsample_factor
    pictures = stage.model.autoencoder.decode(z.to(stage.model.dtype))
    images = [to_image(picture).resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    return stage.encode(torch.cat([to_tensor(image)[None] for image in images])).to(like)
