"""A picture four times as large, by a model that is shown the small one under some noise and told how much (Rombach et al. 2022,
arXiv:2112.10752, section 4.4; the noise: Ho et al. 2021, arXiv:2106.15282).

    input [x ‖ √ᾱ_n·small + √(1−ᾱ_n)·ε],   label n

Latents have the small picture's own size, and its colours stand beside them.
"""

import torch
from PIL import Image
from torch import Tensor

from daguerre.data.images import to_tensor
from daguerre.diffusion import add_noise, randn_per_image
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, from_noise
from daguerre.pipelines.images.preprocess import flatten_input, pad_edges
from daguerre.pipelines.tasks import Upscale


def upscale(context: GenerationContext, task: Upscale) -> SamplingPlan:
    """One pass from noise, the network being shown the small picture at every step."""
    if context.request.width is not None or context.request.height is not None:
        raise DaguerreError(
            f"An upscaled picture has {context.downsample_factor} times the sides of the one given; leave width and height out."
        )
    image = flatten_input(task.image)
    multiple = 2 ** (len(context.model.unet.config.channels) - 1)  # what the network halves must be even each time
    canvas = pad_edges(image, (0, 0, -image.width % multiple, -image.height % multiple))
    small = to_tensor(canvas)[None]  # (1, 3, h, w)
    tell = add_conditioning(context, **low_res_condition(context, small, task.noise))
    large = canvas.width * context.downsample_factor, canvas.height * context.downsample_factor
    box = 0, 0, image.width * context.downsample_factor, image.height * context.downsample_factor
    return SamplingPlan(
        (Pass(large, context.sigmas(), from_noise(context), edit_conditions=tell),), finish=lambda picture: crop(picture, box)
    )


def low_res_condition(context: GenerationContext, small: Tensor, steps: int) -> dict[str, Tensor]:
    """What the network is told of a small picture (1, 3, h, w): fields of `Conditioning`. One without labels sees it as it is."""
    if context.model.unet.config.classes is None:
        return {"concat": small}
    noise = randn_per_image(context.generators, small.shape[1:])  # (B, 3, h, w)
    level = torch.full((len(noise),), steps)
    schedule = context.model.low_res_schedule or context.model.schedule
    return {"concat": add_noise(small, noise, schedule.alphas_cumprod[level]), "label": level}


def crop(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part (left, top, right, bottom) of a picture; itself where that is all of it."""
    return picture if picture.size == box[2:] else picture.crop(box)
