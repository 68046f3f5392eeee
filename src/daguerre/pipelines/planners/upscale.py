"""A picture four times as large, by a model that is shown the small one under some noise and told how much (Rombach et al. 2022,
arXiv:2112.10752, section 4.4; the noise: Ho et al. 2021, arXiv:2106.15282).

    input [x ‖ √ᾱ_n·small + √(1−ᾱ_n)·ε],   label n

Latents have the small picture's own size, and its colours stand beside them.
"""

import torch
from PIL import Image
from torch import Tensor

from daguerre.diffusion import draw, noisy
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import Pass, Plan, Stage, also_told, from_noise
from daguerre.pipelines.images.preprocess import extended, opaque, to_pixels
from daguerre.pipelines.tasks import Upscale


def upscale(stage: Stage, task: Upscale) -> Plan:
    """One pass from noise, the network being shown the small picture at every step."""
    if stage.request.width is not None or stage.request.height is not None:
        raise DaguerreError(f"An upscaled picture has {stage.f} times the sides of the one given; leave width and height out.")
    image = opaque(task.picture)
    multiple = 2 ** (len(stage.model.unet.config.channels) - 1)  # what the network halves must be even each time
    canvas = extended(image, (0, 0, -image.width % multiple, -image.height % multiple))
    small = to_pixels(canvas)  # (1, 3, h, w)
    tell = also_told(stage, **shown(stage, small, task.noise))
    large = canvas.width * stage.f, canvas.height * stage.f
    box = 0, 0, image.width * stage.f, image.height * stage.f
    return Plan((Pass(large, stage.sigmas(), from_noise(stage), tell=tell),), finish=lambda picture: cut(picture, box))


def shown(stage: Stage, small: Tensor, steps: int) -> dict[str, Tensor]:
    """What the network is told of a small picture (1, 3, h, w): fields of `Conditioning`. One without labels sees it as it is."""
    if stage.model.unet.config.classes is None:
        return {"concat": small}
    noise = draw(stage.sources, small.shape[1:])  # (B, 3, h, w)
    level = torch.full((len(noise),), steps)
    schedule = stage.model.low_resolution or stage.model.schedule
    return {"concat": noisy(small, noise, schedule.alpha_bars[level]), "label": level}


def cut(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part (left, top, right, bottom) of a picture; itself where that is all of it."""
    return picture if picture.size == box[2:] else picture.crop(box)
