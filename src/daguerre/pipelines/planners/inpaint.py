"""Inpainting and outpainting, with models of either kind:

    any model           after every step the kept part of x0 is replaced by the image's own latents (`diffusion.replace_known`)
    nine channels       the network takes x, the mask, and the latents of the image without its masked part (Rombach et al. 2022,
                        arXiv:2112.10752, section 4.5)

Both generate the whole image, or the masked part and what surrounds it; then the new pixels are pasted inside the mask, so that no byte
outside it changes.
"""

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from daguerre.conditioning.class_map_image import masked_channels
from daguerre.data.images import to_tensor
from daguerre.diffusion import replace_known
from daguerre.errors import DaguerreError
from daguerre.limits import MAX_PIXELS
from daguerre.pipelines.capabilities import model_task
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, add_noise_at, from_latents
from daguerre.pipelines.images.preprocess import (
    composite,
    feather,
    flatten_input,
    latent_mask,
    mask_bbox,
    pad_edges,
    padded_area,
    prepare_mask,
)
from daguerre.pipelines.tasks import Inpaint, Outpaint, PosteriorMode

OUTPAINT_STRENGTH = 0.8  # for models that were not trained to inpaint


def inpaint(context: GenerationContext, task: Inpaint) -> SamplingPlan:
    """One pass over the image or its masked part, then the masked part is pasted into it."""
    image, mask = flatten_input(task.image), prepare_mask(task.image, task.mask)
    if task.crop_padding is None:
        return inpaint_plan(context, image, mask, task.strength, task.mask_blur, task.latent)
    requested = context.request
    ratio = requested.width / requested.height if requested.width and requested.height else None
    area = padded_area(mask, task.crop_padding, ratio)
    plan = inpaint_plan(context, image.crop(area), mask.crop(area), task.strength, task.mask_blur, task.latent)

    def finish(generated: Image.Image) -> Image.Image:
        whole = image.copy()
        whole.paste(plan.finish(generated), area[:2])
        return whole

    return replace(plan, finish=finish)


def outpaint(context: GenerationContext, task: Outpaint) -> SamplingPlan:
    """Inpainting of the margins of a larger canvas."""
    image = flatten_input(task.image)
    width, height = image.width + task.left + task.right, image.height + task.top + task.bottom
    if width * height > MAX_PIXELS:
        raise DaguerreError(
            f"With its margins the image has {width}×{height} pixels, more than {MAX_PIXELS // 10**6} million; use smaller margins."
        )
    canvas = pad_edges(image, task.margins)
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (task.left, task.top, task.left + image.width, task.top + image.height))
    strength = task.strength if task.strength is not None else 1.0 if model_task(context.model) == "inpainting" else OUTPAINT_STRENGTH
    return inpaint_plan(context, canvas, mask, strength, task.mask_blur, "mean")


def inpaint_plan(
    context: GenerationContext, image: Image.Image, mask: Image.Image, strength: float, mask_blur: int | None, latent: PosteriorMode
) -> SamplingPlan:
    """The plan for an RGB image and a mask of its size, 255 where to generate."""
    size, f = context.size_on(image), context.downsample_factor
    x, unknown = to_tensor(image.resize(size, Image.Resampling.LANCZOS))[None], latent_mask(mask, size, f)
    z = context.encode(x, sample=latent == "sample")
    run = Pass(size, context.sigmas(strength), from_latents(context, z, strength))
    if model_task(context.model) == "inpainting":
        extra = masked_condition(context, x, latent_mask(mask, size), unknown.to(z))
        run = replace(run, edit_conditions=add_conditioning(context, concat=extra))
    else:
        run = replace_outside(run, z, unknown.to(z))
    box = mask_bbox(mask)
    share = feather(mask.crop(box), f * image.width // size[0] if mask_blur is None else mask_blur)
    return SamplingPlan((run,), lambda generated: composite(generated, image, share, box))


def masked_condition(context: GenerationContext, x: Tensor, hole: Tensor, unknown: Tensor) -> Tensor:
    """Extra input channels (1, 1 + Z, h, w) of inpainting models: the mask `unknown` (1, 1, h, w), and the latents of the image x
    (1, 3, H, W) without its `hole` (1, 1, H, W).

    Stable Diffusion has the mask first and a grey hole. Latent diffusion's own model, which takes no prompt, has a black hole and the mask
    last, in [−1, 1].
    """
    if context.model.unet.config.context_width is None:
        return masked_channels(context.encode, x, hole, unknown)
    return torch.cat([unknown, context.encode(x * (1 - hole))], dim=1)


def replace_outside(run: Pass, known: Tensor, unknown: Tensor) -> Pass:
    """The pass with latents `known` (1 or B, Z, h, w) kept where `unknown` (1, 1, h, w) is 0, from the initial noise on."""

    def init(noise: Tensor, sigma: Tensor, previous: Tensor | None) -> Tensor:
        return torch.where(unknown > 0, run.init(noise, sigma, previous), add_noise_at(known, noise, sigma))

    return replace(run, init=init, wrap_denoiser=lambda denoise: replace_known(denoise, known, unknown))
