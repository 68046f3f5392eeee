"""What a saved picture says of itself: the `parameters` text that other programs read, and everything as JSON under `daguerre`.

    A RED APPLE
    Negative prompt: …
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Trailing, CFG scale: 5, Seed: 7, Size: 64x64, Model: emoji, Version: …

PNG keeps both as text chunks; JPEG and WebP keep the text as EXIF UserComment and the JSON as ImageDescription.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from daguerre.errors import DaguerreError
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import CODE_BY_CODE

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
TEXT, JSON = "parameters", "daguerre"
SAMPLER_LABELS = {  # as other programs spell them
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "unipc": "UniPC",
}
UNICODE = b"UNICODE\0"  # how EXIF 2.3 (section 4.6.5) marks a comment in UTF-16


@dataclass(frozen=True)
class Origin:
    """Where a picture comes from: all that the same bytes depend on.

    `picture` is its place among the pictures of the request, None for a grid of them all.
    """

    request: Request
    picture: int | None
    model: str
    version: str
    torch: str
    device: str
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` gives it back."""
        return {**asdict(self), "request": self.request.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Origin":
        """Read what `to_json` wrote. Raises DaguerreError where it is something else."""
        try:
            return cls(**{**value, "request": Request.from_json(value["request"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise DaguerreError("The picture's request cannot be read; it was written by another version or changed since.") from error


def parameters(origin: Origin, size: tuple[int, int]) -> str:
    """The text that other programs write and read, for a picture of `size` (width, height) pixels."""
    request = origin.request if origin.picture is None else origin.request.singles()[origin.picture]
    values = {
        **(_drawing(request) if request.sampler == CODE_BY_CODE else _walking(request)),
        "Seed": request.seed,
        **({} if origin.picture is None else {"Size": f"{size[0]}x{size[1]}"}),  # a grid has no size that one could ask for
        "Model": origin.model,
        "Version": f"daguerre {origin.version}",
    }
    lines = [" | ".join(request.prompts)]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items()))
    return "\n".join(lines)


def _walking(request: Request) -> dict[str, object]:
    return {
        "Steps": request.steps,
        "Sampler": SAMPLER_LABELS.get(request.sampler, request.sampler),
        **({"Schedule type": request.spacing.replace("_", " ").capitalize()} if request.spacing else {}),
        "CFG scale": f"{request.guidance:g}",
    }


def _drawing(request: Request) -> dict[str, object]:
    top_k = {} if request.top_k is None else {"Top k": request.top_k}
    return {"Sampler": CODE_BY_CODE, "Temperature": f"{request.temperature:g}", **top_k, "Top p": f"{request.top_p:g}"}


def write_picture(file: BinaryIO, image: Image.Image, suffix: str, origin: Origin) -> None:
    """Encode a picture with its origin inside; `suffix` is a key of `FORMATS`."""
    text, data = parameters(origin, image.size), json.dumps(origin.to_json())
    if FORMATS[suffix] == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(TEXT, text)
        chunks.add_text(JSON, data)
        image.save(file, "PNG", pnginfo=chunks)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = data
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = UNICODE + text.encode("utf-16-be")
    image.save(file, FORMATS[suffix], exif=exif, **({"lossless": True} if FORMATS[suffix] == "WEBP" else {"quality": 95}))


def read_picture(path: str | Path) -> tuple[Image.Image, dict[str, str]]:
    """A picture and the texts it carries (`parameters`, `daguerre` and, in a PNG, any other).

    Raises:
        DaguerreError: the file is missing, or is no whole picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError as error:
        raise DaguerreError(f"'{path}' is not a picture that can be read.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DaguerreError(f"Cannot read the picture '{path}': {reason}.") from error
    texts = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
    exif = image.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment.startswith(UNICODE):
        texts[TEXT] = comment.removeprefix(UNICODE).decode("utf-16-be", errors="replace")
    if isinstance(description := exif.get(ExifTags.Base.ImageDescription), str):
        texts[JSON] = description
    return image, texts


def read_origin(path: str | Path) -> tuple[Image.Image, Origin]:
    """A picture and where it comes from.

    Raises:
        DaguerreError: the file is no picture, or one that was not made here.
    """
    image, texts = read_picture(path)
    try:
        data = json.loads(texts[JSON])
    except (KeyError, ValueError) as error:
        raise DaguerreError(f"'{path}' carries no request of ours; only a picture that daguerre saved can be made again.") from error
    return image, Origin.from_json(data)


def _quoted(value: str) -> str:
    """A value as JSON where a bare one would end too soon."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value
