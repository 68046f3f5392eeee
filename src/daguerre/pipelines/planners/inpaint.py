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

from daguerre.data.images import MAX_PIXELS
from daguerre.diffusion import keep_known
from daguerre.errors import DaguerreError
from daguerre.pipelines.capabilities import kind
from daguerre.pipelines.context import Pass, Plan, Stage, also_told, from_latents, noised
from daguerre.pipelines.images.preprocess import around, extended, feathered, free_places, mask_of, opaque, pasted, to_pixels
from daguerre.pipelines.tasks import Inpaint, Latent, Outpaint

DRAWN_OUT = 0.8  # the strength at which a model not trained to fill in continues edges that were drawn out


def inpaint(stage: Stage, task: Inpaint) -> Plan:
    """One pass over the canvas, then the masked part laid over the picture."""
    return filled(stage, opaque(task.picture), mask_of(task.picture, task.mask), task.strength, task.feather, task.latent)


def outpaint(stage: Stage, task: Outpaint) -> Plan:
    """Inpainting of the margins of a larger canvas."""
    image = opaque(task.picture)
    width, height = image.width + task.left + task.right, image.height + task.top + task.bottom
    if width * height > MAX_PIXELS:
        raise DaguerreError(f"With its margins the picture has {width}×{height} pixels, more than {MAX_PIXELS // 10**6} million; add less.")
    canvas = extended(image, task.margins)
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (task.left, task.top, task.left + image.width, task.top + image.height))
    strength = task.strength if task.strength is not None else 1.0 if kind(stage.model) == "inpainting" else DRAWN_OUT
    return filled(stage, canvas, mask, strength, task.feather, "mean")


def filled(stage: Stage, image: Image.Image, mask: Image.Image, strength: float, feather: int | None, latent: Latent) -> Plan:
    """The plan for an RGB picture and a mask of its size, 255 where it is drawn anew."""
    size = stage.size_on(image)
    x, free = to_pixels(image.resize(size, Image.Resampling.LANCZOS)), free_places(mask, size, stage.f)
    z = stage.encode(x, sample=latent == "sample")
    begin, sigmas = from_latents(stage, z, strength), stage.sigmas(strength)
    if kind(stage.model) == "inpainting":
        run = Pass(size, sigmas, begin, tell=also_told(stage, concat=around_hole(stage, x, free_places(mask, size), free.to(z))))
    else:
        run = keeping(Pass(size, sigmas, begin), z, free.to(z))
    box = around(mask)
    share = feathered(mask.crop(box), stage.f * image.width // size[0] if feather is None else feather)
    return Plan((run,), lambda new: pasted(new, image, share, box))


def around_hole(stage: Stage, x: Tensor, hole: Tensor, free: Tensor) -> Tensor:
    """What a network that fills in is told, (1, 1 + Z, h, w): the mask `free` (1, 1, h, w), and latents of the picture x (1, 3, H, W)
    without its `hole` (1, 1, H, W).

    Stable Diffusion's have the mask first, and the hole is grey. Latent diffusion's own hears no words; its hole is black, and its mask is
    last and in [−1, 1].
    """
    if stage.model.unet.config.context_width is None:
        return torch.cat([stage.encode(x * (1 - hole) - hole), 2 * free - 1], dim=1)
    return torch.cat([free, stage.encode(x * (1 - hole))], dim=1)


def keeping(run: Pass, known: Tensor, free: Tensor) -> Pass:
    """The pass with latents `known` (1 or B, Z, h, w) kept where `free` (1, 1, h, w) is 0, from the first noise on."""

    def begin(noise: Tensor, sigma: Tensor, before: Tensor | None) -> Tensor:
        return torch.where(free > 0, run.begin(noise, sigma, before), noised(known, noise, sigma))

    return replace(run, begin=begin, around=lambda denoise: keep_known(denoise, known, free))
