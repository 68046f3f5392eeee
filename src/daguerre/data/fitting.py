"""How an image of any shape gets the size of the training images."""

import math
from typing import Literal

from PIL import Image

from daguerre.data.images import resize_and_crop, resize_and_pad

CropMode = Literal["random", "center", "pad", "stretch", "bucket"]
CROP_NAMES: dict[CropMode, str] = {
    "random": "a random part of the longer side",
    "center": "the middle of the longer side",
    "pad": "none, the shorter side is padded with white",
    "stretch": "none, both sides are stretched",
    "bucket": "rectangles near the images' aspect ratios",
}
MAX_RATIO = 4  # of the sides of a rectangle


def fit_image(
    image: Image.Image,
    size: tuple[int, int],
    crop: CropMode,
    position: float = 0.5,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """An image with the size (height, width): padded, stretched, or cropped at `position` (see `resize_and_crop`)."""
    if crop == "pad":
        return resize_and_pad(image, size, resample)
    if crop == "stretch":
        return image.resize((size[1], size[0]), resample)
    return resize_and_crop(image, size, position, resample)


def aspect_ratio_bucket(image: tuple[int, int], size: int, step: int) -> tuple[int, int]:
    """The rectangle (height, width) with the aspect ratio nearest to that of an image (height, width), in the logarithm.

    Its sides are multiples of `step` with at most size² pixels and at most 4:1. A pure function, so that an image keeps its rectangle
    when others are added (NovelAI 2022, "Aspect ratio bucketing").
    """
    shortest = max(1, size // 2 // step) * step
    pairs = ((side, size**2 // side // step * step) for side in range(shortest, MAX_RATIO * size, step))
    rectangles = [each for one, other in pairs if other >= shortest for each in ((one, other), (other, one))]
    ratio = math.log(image[1] / image[0])
    return min(rectangles or [(size, size)], key=lambda each: (abs(math.log(each[1] / each[0]) - ratio), -each[0] * each[1]))
