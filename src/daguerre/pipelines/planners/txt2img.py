"""Text to image, and the hires fix: generate at the model's own size, upscale, then img2img at the larger size."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daguerre.data.images import to_image, to_tensor
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_noise_at, from_noise
from daguerre.pipelines.tasks import Hires, TextToImage


def txt2img(context: GenerationContext, _task: TextToImage) -> SamplingPlan:
    """One pass from noise."""
    return SamplingPlan((Pass(context.image_size, context.sigmas(), from_noise(context)),))


def hires(context: GenerationContext, task: Hires) -> SamplingPlan:
    """One pass from noise, and one from its upscaled result with noise added."""
    size, f = context.image_size, context.downsample_factor
    large = round(size[0] * task.scale / f) * f, round(size[1] * task.scale / f) * f

    def init(noise: Tensor, sigma: Tensor, previous: Tensor | None) -> Tensor:
        assert previous is not None
        return add_noise_at(upscale_latents(context, task, previous, noise), noise, sigma)

    return SamplingPlan((Pass(size, context.sigmas(), from_noise(context)), Pass(large, context.sigmas(task.strength), init)))


def upscale_latents(context: GenerationContext, task: Hires, z: Tensor, like: Tensor) -> Tensor:
    """Latents (B, Z, h, w) upscaled to the size of others (B, Z, H, W)."""
    if task.upscaler == "latent":
        return F.interpolate(z, size=like.shape[-2:], mode="bilinear", antialias=True)
    size = like.shape[-1] * context.downsample_factor, like.shape[-2] * context.downsample_factor
    decoded = context.model.autoencoder.decode(z.to(context.model.dtype))
    images = [to_image(image).resize(size, Image.Resampling.LANCZOS) for image in decoded]
    return context.encode(torch.stack([to_tensor(image) for image in images])).to(like)
