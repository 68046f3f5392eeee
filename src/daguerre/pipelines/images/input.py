"""The input images of a request: pixels, path, and a hash that identifies the pixels.

Neither this file nor `tasks` imports torch, so that a saved request can be read quickly.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from daguerre.errors import DaguerreError

if TYPE_CHECKING:
    import numpy as np

HIGH_BIT_MODES = ("F", "I", "I;16", "I;16B", "I;16L")  # grey with more than 8 bits, as depth maps need


@dataclass(frozen=True)
class InputImage:
    """An input image; two are equal if their pixels and paths are.

    Attributes:
        sha256: of the pixels with mode and size; a change of the file's metadata does not change it.
        path: the file it came from, as given; None for pixels from memory.
        image: rotated as EXIF states; RGB, RGBA if partly transparent, or grey with more than 8 bits; None in a request read
            from a file until the image is opened.
    """

    sha256: str
    path: str | None = None
    image: Image.Image | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_any(cls, pixels: "InputImage | Image.Image | np.ndarray", path: str | None = None) -> "InputImage":
        """From a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8 or of floats in [0, 1].

        path: the file it came from; images that Pillow opened from a file know it.

        Raises:
            DaguerreError: for anything else.
        """
        if isinstance(pixels, InputImage):
            return pixels
        path = path or str(getattr(pixels, "filename", "")) or None
        image = apply_exif(pixels if isinstance(pixels, Image.Image) else _from_array(pixels))
        content = f"{image.mode} {image.width} {image.height} ".encode() + image.tobytes()
        return cls(hashlib.sha256(content).hexdigest(), path, image)

    @property
    def pixels(self) -> Image.Image:
        """The image. Raises DaguerreError if it has not been opened yet."""
        if self.image is None:
            raise DaguerreError(f"The image '{self.path or self.sha256[:12]}' of this request has not been opened; pass its pixels again.")
        return self.image

    @property
    def has_alpha(self) -> bool:
        return self.pixels.mode == "RGBA"

    def to_json(self) -> dict[str, str | None]:
        """Path and hash, without the pixels."""
        return {"path": self.path, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "InputImage":
        """Read what `to_json` wrote; the image is not opened."""
        return cls(value["sha256"], value["path"])


def apply_exif(image: Image.Image) -> Image.Image:
    """An image rotated as its EXIF data states, as RGB, as RGBA if partly transparent, or unchanged if grey with more than 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode in HIGH_BIT_MODES:
        return image
    if "A" in image.mode.upper().replace("LAB", "") or "transparency" in image.info:
        image = image.convert("RGBA")
        transparency = image.getchannel("A").point(lambda alpha: 255 - alpha)
        return image if transparency.getbbox() else image.convert("RGB")
    return image.convert("RGB")


def _from_array(pixels: object) -> Image.Image:
    import numpy as np

    array = np.asarray(pixels)
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise DaguerreError(
            "An input image is a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8 or of floats in [0, 1]; "
            f"got {type(pixels).__name__} of {array.dtype}, shape {array.shape}."
        )
    return Image.fromarray(array)
