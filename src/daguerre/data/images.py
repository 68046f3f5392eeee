"""Read anyone's image as upright, opaque RGB: EXIF rotation, transparency, palettes, CMYK and 16 bits; never more pixels than allowed."""

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.limits import MAX_PIXELS

READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
# What Pillow's decoders raise on damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def open_image(file: Path | BinaryIO, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """Decode an image to upright RGB on white; arguments and errors as in `decoded`."""
    return flatten_alpha(decode_image(file, at_least=at_least, max_pixels=max_pixels, name=name)[0])


def decode_image(
    file: Path | BinaryIO, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> tuple[Image.Image, int]:
    """Decode an image upright, in whatever mode it has: its first frame, and how many there are.

    `at_least`: the caller needs no more than this many pixels on the shorter side, so a JPEG may be decoded smaller (much faster).
    Raises DaguerreError, naming the file (or `name`), if it is missing, not an image of READABLE_FORMATS, damaged, or has more than `max_pixels`.
    """
    name = name or (str(file) if isinstance(file, Path) else "the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own pixel warning; ours is an error
            image = Image.open(file, formats=READABLE_FORMATS)
        with image:
            if image.width * image.height > max_pixels:
                raise DaguerreError(
                    f"{name} is {image.width} x {image.height}, more than {max_pixels / 1e6:.3g} million pixels; make it smaller."
                )
            if at_least is not None:
                image.draft("RGB", (at_least, at_least))
            image.load()
            return ImageOps.exif_transpose(image), getattr(image, "n_frames", 1)
    except FileNotFoundError as error:
        raise DaguerreError(f"{name} does not exist.") from error
    except Image.DecompressionBombError as error:
        raise DaguerreError(f"{name} has more than {max_pixels / 1e6:.3g} million pixels; make it smaller.") from error
    except Image.UnidentifiedImageError as error:
        raise DaguerreError(f"{name} is not an image; {', '.join(READABLE_FORMATS)} can be read.") from error
    except _DAMAGED as error:
        raise DaguerreError(f"{name} is damaged or cut short ({error}); replace or remove it.") from error


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Any mode as RGB; clear parts show white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_gray(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _deep_gray(image: Image.Image) -> Image.Image:
    """Gray of 16 or more bits: integers are read as shares of 65535, floats as shares of 1."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64)) / (1 if image.mode == "F" else 65535)
    return Image.fromarray(np.uint8(np.rint(values.clip(0, 1) * 255))).convert("RGB")


def to_tensor(pixels: Image.Image | np.ndarray) -> Tensor:
    """An RGB image, or uint8 pixels (..., H, W, 3), as float32 (..., 3, H, W) in [−1, 1]."""
    return torch.from_numpy(np.array(pixels)).movedim(-1, -3).float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Pixels x (..., 3, H, W) in [−1, 1], clamped and rounded to 8 bits: (..., H, W, 3) on the CPU."""
    return (x.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to("cpu", torch.uint8).movedim(-3, -1)


def to_image(x: Tensor) -> Image.Image:
    """One image x (3, H, W) in [−1, 1], clamped and rounded to 8 bits."""
    return Image.fromarray(to_uint8(x).contiguous().numpy())


def resize_and_crop(
    image: Image.Image, size: int, along: float = 0.5, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Resize so that the shorter side is `size`, and cut a square out of the longer one: at its start (0), middle (0.5) or end (1)."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = round((width - size) * along), round((height - size) * along)
    box = (left / scale, top / scale, min((left + size) / scale, image.width), min((top + size) / scale, image.height))
    return image.resize((size, size), resample, box=box)
