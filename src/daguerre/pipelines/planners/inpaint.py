"""A part of a picture drawn anew, with a model of either kind:

    any model           at every step the kept part of x0 is the picture itself (`diffusion.keep_known`)
    nine channels       the network is told the mask and the picture without its masked part, and fills it in (Rombach et al. 2022,
                        arXiv:2112.10752, section 4.5): input is x, mask, latents

Both draw the whole canvas; then the new pixels are laid over the old ones inside the mask, so that outside it no byte changes.
"""

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

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
    prepare_mask,
)
from daguerre.pipelines.tasks import Inpaint, Outpaint, PosteriorMode

OUTPAINT_STRENGTH = 0.8  # the strength at which a model not trained to fill in continues edges that were drawn out


def inpaint(context: GenerationContext, task: Inpaint) -> SamplingPlan:
    """One pass over the canvas, then the masked part laid over the picture."""
    return inpaint_plan(context, flatten_input(task.image), prepare_mask(task.image, task.mask), task.strength, task.mask_blur, task.latent)


def outpaint(context: GenerationContext, task: Outpaint) -> SamplingPlan:
    """Inpainting of the margins of a larger canvas."""
    image = flatten_input(task.image)
    width, height = image.width + task.left + task.right, image.height + task.top + task.bottom
    if width * height > MAX_PIXELS:
        raise DaguerreError(f"With its margins the picture has {width}×{height} pixels, more than {MAX_PIXELS // 10**6} million; add less.")
    canvas = pad_edges(image, task.margins)
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (task.left, task.top, task.left + image.width, task.top + image.height))
    strength = task.strength if task.strength is not None else 1.0 if model_task(context.model) == "inpainting" else OUTPAINT_STRENGTH
    return inpaint_plan(context, canvas, mask, strength, task.mask_blur, "mean")


def inpaint_plan(
    context: GenerationContext, image: Image.Image, mask: Image.Image, strength: float, mask_blur: int | None, latent: PosteriorMode
) -> SamplingPlan:
    """The plan for an RGB picture and a mask of its size, 255 where it is drawn anew."""
    size = context.size_on(image)
    x, free = to_tensor(image.resize(size, Image.Resampling.LANCZOS))[None], latent_mask(mask, size, context.downsample_factor)
    z = context.encode(x, sample=latent == "sample")
    begin, sigmas = from_latents(context, z, strength), context.sigmas(strength)
    if model_task(context.model) == "inpainting":
        run = Pass(
            size,
            sigmas,
            begin,
            edit_conditions=add_conditioning(context, concat=masked_condition(context, x, latent_mask(mask, size), free.to(z))),
        )
    else:
        run = replace_outside(Pass(size, sigmas, begin), z, free.to(z))
    box = mask_bbox(mask)
    share = feather(mask.crop(box), context.downsample_factor * image.width // size[0] if mask_blur is None else mask_blur)
    return SamplingPlan((run,), lambda new: composite(new, image, share, box))


def masked_condition(context: GenerationContext, x: Tensor, hole: Tensor, free: Tensor) -> Tensor:
    """What a network that fills in is told, (1, 1 + Z, h, w): the mask `free` (1, 1, h, w), and latents of the picture x (1, 3, H, W)
    without its `hole` (1, 1, H, W).

    Stable Diffusion's have the mask first, and the hole is grey. Latent diffusion's own hears no words; its hole is black, and its mask is
    last and in [−1, 1].
    """
    if context.model.unet.config.context_width is None:
        return torch.cat([context.encode(x * (1 - hole) - hole), 2 * free - 1], dim=1)
    return torch.cat([free, context.encode(x * (1 - hole))], dim=1)


def replace_outside(run: Pass, known: Tensor, free: Tensor) -> Pass:
    """The pass with latents `known` (1 or B, Z, h, w) kept where `free` (1, 1, h, w) is 0, from the first noise on."""

    def begin(noise: Tensor, sigma: Tensor, before: Tensor | None) -> Tensor:
        return torch.where(free > 0, run.init(noise, sigma, before), add_noise_at(known, noise, sigma))

    return replace(run, init=begin, wrap_denoiser=lambda denoise: replace_known(denoise, known, free))
