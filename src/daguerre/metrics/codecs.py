"""JPEG and WebP at a given number of bytes, to set the codes of a first stage against.

All images lie on one sheet, so that headers and tables are paid for once and not by each small image. Where even the lowest quality is
too large, the sheet is coded at a half, a quarter or an eighth of its size and enlarged again; of what fits, the nearest to the images
counts.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from daguerre.data.images import to_image, to_tensor
from daguerre.errors import DaguerreError

OPTIONS = {"JPEG": {"optimize": True}, "WebP": {"method": 4}}
SHRINKING = (1, 2, 4, 8)
LARGEST = 16_383  # pixels on a side of a WebP


@dataclass(frozen=True)
class EncodedImage:
    """x: the images (N, 3, H, W) in [−1, 1] as they come back; bytes: of the file that holds all of them."""

    x: Tensor
    bytes: int


def encode_with_codec(x: Tensor, codec: str, budget: int) -> EncodedImage | None:
    """Images x (N, 3, H, W) in [−1, 1] through a `codec` of OPTIONS, in at most `budget` bytes together, as well as it can; None where
    it has no file that small.

    Raises:
        DaguerreError: they are too many for one sheet.
    """
    N, _, H, W = x.shape
    columns = math.ceil(N**0.5)
    rows = math.ceil(N / columns)
    if max(columns * W, rows * H) > LARGEST:
        raise DaguerreError(f"{N} images of {W}×{H} make a sheet of more than {LARGEST} pixels on a side; compare fewer at a time.")
    filled = torch.cat([x, x.new_zeros(columns * rows - N, 3, H, W)])
    sheet = filled.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).reshape(3, rows * H, columns * W)
    image = to_image(sheet)
    found = []
    for back, size in _fitting(image, codec, budget):
        y = to_tensor(back).unflatten(2, (columns, W)).unflatten(1, (rows, H)).permute(1, 3, 0, 2, 4).flatten(0, 1)[:N]
        found.append(EncodedImage(y, size))
    return min(found, key=lambda each: (each.x - x.float().cpu()).square().mean().item(), default=None)


def _fitting(image: Image.Image, codec: str, budget: int) -> Iterator[tuple[Image.Image, int]]:
    """For each shrinking at which it fits, the image of the highest quality as it comes back, and its bytes."""
    for times in SHRINKING:
        small = image.reduce(times) if times > 1 else image
        low, high, best = 0, 95, None
        while low <= high:  # bytes rise with the quality
            quality = (low + high) // 2
            file = _written(small, codec, quality)
            if len(file) <= budget:
                low, best = quality + 1, file
            else:
                high = quality - 1
        if best is not None:
            back = Image.open(io.BytesIO(best)).convert("RGB")
            yield (back.resize(image.size, Image.Resampling.BICUBIC) if times > 1 else back), len(best)


def _written(image: Image.Image, codec: str, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, codec.upper(), quality=quality, **OPTIONS[codec])
    return file.getvalue()
