"""Upscaling, by a model that takes the small image with some noise and the noise level (Rombach et al. 2022, arXiv:2112.10752,
section 4.4; noise conditioning: Ho et al. 2021, arXiv:2106.15282).

    input [x ‖ √ᾱ_n·small + √(1−ᾱ_n)·ε],   label n

Latents have the size of the small image, whose RGB channels are concatenated to them. A model trained here may have smaller latents: then
each position takes the channels of a block of pixels.
"""

import torch
from torch import Tensor

from daguerre.conditioning.class_map_image import ConcatConditioner
from daguerre.data.images import to_tensor
from daguerre.diffusion import add_noise, randn_per_image
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, from_noise
from daguerre.pipelines.images.preprocess import flatten_input, pad_edges
from daguerre.pipelines.tasks import Upscale


def upscale(context: GenerationContext, task: Upscale) -> SamplingPlan:
    """One pass from noise, with the small image as extra input channels."""
    f, conditioner = context.downsample_factor, context.model.conditioner
    scale = conditioner.scale if isinstance(conditioner, ConcatConditioner) else f
    if context.request.width is not None or context.request.height is not None:
        raise DaguerreError(f"An upscaled image has {scale} times the sides of the input; leave width and height out.")
    image = flatten_input(task.image)
    halved = 2 ** (len(context.model.unet.config.channels) - 1)  # the UNet halves the latents' sides this often, and they must stay even
    multiple = halved * f // scale
    canvas = pad_edges(image, (0, 0, -image.width % multiple, -image.height % multiple))
    edit = add_conditioning(context, **low_res_condition(context, to_tensor(canvas)[None], task.noise))
    run = Pass((canvas.width * scale, canvas.height * scale), context.sigmas(), from_noise(context), edit_conditions=edit)
    box = 0, 0, image.width * scale, image.height * scale
    return SamplingPlan((run,), finish=lambda upscaled: upscaled if upscaled.size == box[2:] else upscaled.crop(box))


def low_res_condition(context: GenerationContext, small: Tensor, timestep: int) -> dict[str, Tensor]:
    """Fields of `Conditioning` for a small image (1, 3, h, w) with noise of a timestep; models without noise labels take it as it is."""
    conditioner = context.model.conditioner
    if isinstance(conditioner, ConcatConditioner):
        return {"concat": conditioner.channels(context.encode, context.downsample_factor, small)}
    if context.model.unet.config.classes is None:
        return {"concat": small}
    noise = randn_per_image(context.generators, small.shape[1:])  # (B, 3, h, w)
    level = torch.full((len(noise),), timestep)
    schedule = context.model.low_res_schedule or context.model.schedule
    return {"concat": add_noise(small, noise, schedule.alphas_cumprod[level]), "label": level}
