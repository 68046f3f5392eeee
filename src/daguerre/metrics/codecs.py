"""JPEG and WebP within a given number of bytes, as a baseline for the codes of a first stage.

All images are tiled into one file, so that headers and tables count once. If the lowest quality is still too large, the tiled image is
also encoded at 1/2, 1/4 or 1/8 of its size and enlarged again; the result with the smallest error counts.
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

CODECS = {"JPEG": {"optimize": True}, "WebP": {"method": 4}}
DOWNSCALES = (1, 2, 4, 8)
MAX_WEBP_SIDE = 16_383  # pixels, of a WebP image


@dataclass(frozen=True)
class EncodedImage:
    """x: decoded images (N, 3, H, W) in [−1, 1]; bytes: size of the one file with all of them."""

    x: Tensor
    bytes: int


def encode_with_codec(x: Tensor, codec: str, budget: int) -> EncodedImage | None:
    """Encode images x (N, 3, H, W) in [−1, 1] with a codec of CODECS in at most `budget` bytes in total and decode them again, with the
    smallest error. None if no file is that small.

    Raises:
        DaguerreError: there are too many images for one file.
    """
    N, _, H, W = x.shape
    columns = math.ceil(N**0.5)
    rows = math.ceil(N / columns)
    if max(columns * W, rows * H) > MAX_WEBP_SIDE:
        raise DaguerreError(f"{N} images of {W}×{H}, tiled into one, have a side of more than {MAX_WEBP_SIDE} pixels; use fewer images.")
    padded = torch.cat([x, x.new_zeros(columns * rows - N, 3, H, W)])
    tiled = padded.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).reshape(3, rows * H, columns * W)
    image = to_image(tiled)
    candidates = []
    for decoded, size in _encodings(image, codec, budget):
        y = to_tensor(decoded).unflatten(2, (columns, W)).unflatten(1, (rows, H)).permute(1, 3, 0, 2, 4).flatten(0, 1)[:N]
        candidates.append(EncodedImage(y, size))
    return min(candidates, key=lambda each: (each.x - x.float().cpu()).square().mean().item(), default=None)


def _encodings(image: Image.Image, codec: str, budget: int) -> Iterator[tuple[Image.Image, int]]:
    """For each downscale that fits the budget, the decoded image of the highest possible quality, and its number of bytes."""
    for factor in DOWNSCALES:
        small = image.reduce(factor) if factor > 1 else image
        low, high, best = 0, 95, None
        while low <= high:  # binary search: the size grows with the quality
            quality = (low + high) // 2
            file = _encode(small, codec, quality)
            if len(file) <= budget:
                low, best = quality + 1, file
            else:
                high = quality - 1
        if best is not None:
            decoded = Image.open(io.BytesIO(best)).convert("RGB")
            yield (decoded.resize(image.size, Image.Resampling.BICUBIC) if factor > 1 else decoded), len(best)


def _encode(image: Image.Image, codec: str, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, codec.upper(), quality=quality, **CODECS[codec])
    return file.getvalue()
