"""A picture that a request is given: its pixels, where they came from, and a hash by which they are known again.

Neither this file nor `tasks` imports torch, so that a saved request can be read and checked without it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from daguerre.errors import DaguerreError

if TYPE_CHECKING:
    import numpy as np

HIGH_BIT_MODES = ("F", "I", "I;16", "I;16B", "I;16L")  # grey of more than 8 bits, which a map of depth needs


@dataclass(frozen=True)
class InputImage:
    """A picture as input; two are equal if their pixels and their path are.

    Attributes:
        sha256: of the pixels with their mode and size, so that it stays the same when only a file's metadata change.
        path: the file it came from, as it was named; None for pixels that came from a program.
        image: upright, RGB, RGBA where some of it is transparent, or deep grey; None in a request read from a file, until it is opened.
    """

    sha256: str
    path: str | None = None
    image: Image.Image | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_any(cls, pixels: "InputImage | Image.Image | np.ndarray", path: str | None = None) -> "InputImage":
        """Take a picture of Pillow's, or an array: (H, W), (H, W, 3) or (H, W, 4), uint8 or floats in [0, 1].

        path: where it came from; what Pillow opened from a file knows that itself.

        Raises:
            DaguerreError: it is something else.
        """
        if isinstance(pixels, InputImage):
            return pixels
        path = path or str(getattr(pixels, "filename", "")) or None
        image = apply_exif(pixels if isinstance(pixels, Image.Image) else _image(pixels))
        content = f"{image.mode} {image.width} {image.height} ".encode() + image.tobytes()
        return cls(hashlib.sha256(content).hexdigest(), path, image)

    @property
    def pixels(self) -> Image.Image:
        """The pixels. Raises DaguerreError where there are none yet."""
        if self.image is None:
            raise DaguerreError(
                f"The picture '{self.path or self.sha256[:12]}' of this request has not been opened; give its pixels again."
            )
        return self.image

    @property
    def has_alpha(self) -> bool:
        return self.pixels.mode == "RGBA"

    def to_json(self) -> dict[str, str | None]:
        """Path and hash; the pixels stay where they are."""
        return {"path": self.path, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "InputImage":
        """Read what `to_json` wrote; the picture is not opened."""
        return cls(value["sha256"], value["path"])


def apply_exif(image: Image.Image) -> Image.Image:
    """Any picture turned as its EXIF says, as RGB, as RGBA where some of it is transparent, or as it is where it is deep grey."""
    image = ImageOps.exif_transpose(image)
    if image.mode in HIGH_BIT_MODES:
        return image
    if "A" in image.mode.upper().replace("LAB", "") or "transparency" in image.info:
        image = image.convert("RGBA")
        clear = image.getchannel("A").point(lambda alpha: 255 - alpha)
        return image if clear.getbbox() else image.convert("RGB")
    return image.convert("RGB")


def _image(pixels: object) -> Image.Image:
    import numpy as np

    array = np.asarray(pixels)
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise DaguerreError(
            f"A picture is one of Pillow's, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8 or of floats in [0, 1]; "
            f"got {type(pixels).__name__} of {array.dtype}, shape {array.shape}."
        )
    return Image.fromarray(array)
