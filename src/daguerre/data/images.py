"""Read image files as upright, opaque RGB (EXIF rotation, transparency, palettes, CMYK, 16 bits) with a pixel limit; convert to tensors."""

import struct
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, features
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.limits import MAX_PIXELS

HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
_OPTIONAL_FORMATS = {"AVIF": frozenset((".avif", ".avifs")) if features.check("avif") else frozenset[str](), "HEIF": frozenset[str]()}
with suppress(ImportError):  # an optional package
    import_module("pillow_heif").register_heif_opener()
    _OPTIONAL_FORMATS["HEIF"] = HEIF_SUFFIXES
READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", *(name for name, suffixes in _OPTIONAL_FORMATS.items() if suffixes))
SUFFIXES = frozenset((".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif", ".tif", ".tiff")).union(
    *_OPTIONAL_FORMATS.values()
)
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # bytes of a text or colour profile: workflows exceed Pillow's 1 MiB
# Folders of thumbnails, archives and deleted files.
LEFTOVER_FOLDERS = frozenset(("@eadir", "__macosx", "thumbs", "#recycle", "$recycle.bin", "system volume information", "lost+found"))
LEFTOVER_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db"))
# Exceptions that Pillow's decoders raise for damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder is hidden, or left by a system or program: not what a person put there."""
    name = path.name.lower()
    return name.startswith(".") or name in LEFTOVER_FOLDERS or name in LEFTOVER_FILES


def open_image(file: Path | BinaryIO, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """Decode an image to upright RGB on white; arguments and errors as in `decode_image`."""
    return flatten_alpha(decode_image(file, min_side=min_side, max_pixels=max_pixels, name=name)[0])


def decode_image(
    file: Path | BinaryIO, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> tuple[Image.Image, int]:
    """Decode the first frame of an image upright, in its own mode. Returns it and the number of frames.

    `min_side`: a JPEG may be decoded at a reduced size (much faster) with at least this many pixels on the shorter side.

    Raises:
        DaguerreError: the file (called `name` in the message) is missing, damaged, in another format, or has more than `max_pixels`.
    """
    name = name or (str(file) if isinstance(file, Path) else "the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about many pixels; this function raises
            image = Image.open(file, formats=READABLE_FORMATS)
        with image:
            if image.width * image.height > max_pixels:
                raise DaguerreError(
                    f"{name} has {image.width}×{image.height} pixels; at most {max_pixels / 1e6:.3g} million are allowed. Resize it."
                )
            if min_side is not None:
                image.draft("RGB", (min_side, min_side))
            image.load()
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a phone's MPO has a preview or the other eye's view
            return ImageOps.exif_transpose(image), frames
    except FileNotFoundError as error:
        raise DaguerreError(f"{name} does not exist.") from error
    except Image.DecompressionBombError as error:
        raise DaguerreError(f"{name} has more than {max_pixels / 1e6:.3g} million pixels; resize it.") from error
    except Image.UnidentifiedImageError as error:
        hint = " Install the package pillow-heif to read it." if Path(name).suffix.lower() in HEIF_SUFFIXES else ""
        raise DaguerreError(f"{name} is not an image in a supported format ({', '.join(READABLE_FORMATS)}).{hint}") from error
    except _DECODE_ERRORS as error:
        raise DaguerreError(f"{name} is damaged or incomplete ({error}); replace or remove it.") from error


def image_size(file: Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """(height, width) of an upright image, from the file's header. Errors as in `open_image`, which checks the rest of the file."""
    try:
        with Image.open(file, formats=READABLE_FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except _DECODE_ERRORS as error:
        raise DaguerreError(f"{name or file} is damaged or incomplete ({error}); replace or remove it.") from error


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB on a white background."""
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _gray_to_8_bits(image: Image.Image) -> Image.Image:
    """Convert gray of 16 or more bits: integers have the range 0 … 65535, floats 0 … 1."""
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
    image: Image.Image, size: int | tuple[int, int], position: float = 0.5, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The smallest resized image that covers `size` (a side, or height and width), cropped at the start (position 0), middle (0.5) or end
    (1) of the side that is too long."""
    height, width = (size, size) if isinstance(size, int) else size
    scale = max(width / image.width, height / image.height)
    free = [max(side, round(given * scale)) - side for side, given in zip((width, height), image.size, strict=True)]
    left, top = (round(each * position) for each in free)
    box = (left / scale, top / scale, min((left + width) / scale, image.width), min((top + height) / scale, image.height))
    return image.resize((width, height), resample, box=box)


def resize_and_pad(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.LANCZOS, background: str = "white"
) -> Image.Image:
    """The largest resized image inside `size` (height, width), in the middle of a plain background."""
    height, width = size
    scale = min(width / image.width, height / image.height)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    padded = Image.new("RGB", (width, height), background)
    padded.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return padded
