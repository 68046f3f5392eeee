"""What a saved picture says of itself: the `parameters` text that other programs read, and everything as JSON under `daguerre`.

    A RED APPLE
    Negative prompt: …
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Trailing, CFG scale: 2, Seed: 7, Size: 128x128, Model: emoji, Version: …

PNG keeps both as text chunks; JPEG and WebP keep the text as EXIF UserComment and the JSON as ImageDescription. What other programs write,
and where, is read too (see `pipelines.foreign`).
"""

import html
import json
import os
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from daguerre.errors import DaguerreError
from daguerre.limits import MAX_PIXELS
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import VQ_PRIOR
from daguerre.version import VERSION
from daguerre.weights.catalog import ASSETS, INDEX

if TYPE_CHECKING:
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior

OUTPUT_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
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
MAX_XMP = 1 << 20  # characters that are searched
MAX_JPEG_EXIF = 65_533  # bytes, what one segment of a JPEG holds
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")
UNICODE = b"UNICODE\0"  # how EXIF 2.3 (section 4.6.5) marks a comment in UTF-16


@dataclass(frozen=True)
class Provenance:
    """Where a picture comes from: all that the same bytes depend on.

    Attributes:
        picture: its place among the pictures of the request, None for a grid of them all.
        model: the model's name.
        model_hash: of its files (see `weights.hashes.identity`), None of a model that did not come from files.
        model_path: where these were, None where the name is enough to find them.
    """

    request: Request
    index: int | None
    model: str
    version: str
    torch: str
    device: str
    dtype: str
    model_hash: str | None = None
    model_path: str | None = None

    def __post_init__(self) -> None:
        texts = self.model, self.version, self.torch, self.device, self.dtype, self.model_hash or "", self.model_path or ""
        known = self.index is None or (type(self.index) is int and 0 <= self.index < len(self.request.prompts) * self.request.num_images)
        if not known or not all(isinstance(text, str) for text in texts) or self.dtype not in DTYPE_NAMES:
            raise TypeError("an origin's fields are texts, and its picture is one of the request's")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` gives it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "request": self.request.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Provenance":
        """Read what `to_json` wrote. Raises DaguerreError where it is something else."""
        try:
            return cls(**{**value, "request": Request.from_json(value["request"])})
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise DaguerreError("The picture's request cannot be read; it was written by another version or changed since.") from error


def provenance_of(model: "LatentDiffusion | LatentPrior", request: Request) -> Provenance:
    """The provenance shared by all images of a request; each image then gets its own index."""
    import torch  # imported here so that metadata can be read without it

    from daguerre.weights.hashing import files_hash

    return Provenance(
        request=request,
        index=None,
        model=model.name,
        version=VERSION,
        torch=torch.__version__,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        model_hash=files_hash(model.files) if model.files else None,
        model_path=_model_path(model.files),
    )


def _model_path(files: tuple[Path, ...]) -> str | None:
    """The file or folder that a model was read from; None for embedded models and for models put together from several sources."""
    if not files:
        return None
    if len({file.is_absolute() for file in files}) > 1:  # the autoencoder comes from elsewhere
        return None
    path = Path(files[0] if len(files) == 1 else os.path.commonpath(files))
    single_source = path.is_file() or (path / INDEX).is_file()
    return str(path) if single_source and not path.resolve().is_relative_to(ASSETS.resolve()) else None


def parameters(origin: Provenance, size: tuple[int, int]) -> str:
    """The text that other programs write and read, for a picture of `size` (width, height) pixels."""
    request = origin.request if origin.index is None else origin.request.split()[origin.index]
    values = {
        **(_drawing(request) if request.sampler == VQ_PRIOR else _walking(request)),
        "Seed": request.seed,
        **({} if origin.index is None else {"Size": f"{size[0]}x{size[1]}"}),  # a grid has no size that one could ask for
        **({} if origin.model_hash is None else {"Model hash": origin.model_hash[:10]}),
        "Model": origin.model,
        "Version": f"daguerre {origin.version}",
    }
    lines = [" | ".join(request.prompts)]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items()))
    return "\n".join(lines)


def _walking(request: Request) -> dict[str, object]:
    variation = request.variation
    return {
        "Steps": request.steps,
        "Sampler": SAMPLER_LABELS.get(request.sampler, request.sampler),
        **({"Schedule type": request.spacing.replace("_", " ").capitalize()} if request.spacing else {}),
        **({} if request.guidance_scale is None else {"CFG scale": f"{request.guidance_scale:g}"}),
        **request.task.parameters(),
        **({} if variation is None else {"Variation seed": variation.seed, "Variation seed strength": f"{variation.weight:g}"}),
        **({} if request.tiling == "none" else {"Tiling": True}),
    }


def _drawing(request: Request) -> dict[str, object]:
    top_k = {} if request.top_k is None else {"Top k": request.top_k}
    return {"Sampler": VQ_PRIOR, "Temperature": f"{request.temperature:g}", **top_k, "Top p": f"{request.top_p:g}"}


def write_image_with_metadata(file: BinaryIO, image: Image.Image, suffix: str, origin: Provenance) -> None:
    """Encode a picture with its origin inside; `suffix` is a key of `FORMATS`.

    Raises:
        DaguerreError: the origin is longer than a JPEG can hold.
    """
    text, data = parameters(origin, image.size), json.dumps(origin.to_json())
    if OUTPUT_FORMATS[suffix] == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(TEXT, text)
        chunks.add_text(JSON, data)
        image.save(file, "PNG", pnginfo=chunks)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = data
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = UNICODE + text.encode("utf-16-be")
    if OUTPUT_FORMATS[suffix] == "JPEG" and (length := len(exif.tobytes())) > MAX_JPEG_EXIF:
        raise DaguerreError(f"The request is {length} bytes long, and a JPEG holds {MAX_JPEG_EXIF}; save the picture as .png or .webp.")
    image.save(file, OUTPUT_FORMATS[suffix], exif=exif, **({"lossless": True} if OUTPUT_FORMATS[suffix] == "WEBP" else {"quality": 95}))


def read_image_texts(path: str | Path) -> tuple[Image.Image, dict[str, str]]:
    """A picture and the texts it carries, by their names in a PNG: `parameters`, `daguerre`, those of other programs.

    Raises:
        DaguerreError: the file is missing, is no whole picture, or is larger than pictures are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning of large pictures; ours is an error
            with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DaguerreError(f"'{path}' is {image.width}×{image.height} pixels, more than {MAX_PIXELS // 10**6} million.")
                image.load()
                return image, dict(_texts(image))
    except UnidentifiedImageError as error:
        raise DaguerreError(f"'{path}' is not a picture that can be read; PNG, JPEG and WebP can.") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DaguerreError(f"Cannot read the picture '{path}': {reason}.") from error


def _texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Names and texts, from wherever the three formats keep them; of one name the last counts."""
    xmp = image.info.get("xmp", image.info.get("XML:com.adobe.xmp", b""))
    xmp = xmp.decode("utf-8", errors="replace") if isinstance(xmp, bytes) else str(xmp)
    for tag in ("dc:description", "exif:UserComment"):
        for found in re.findall(rf"<{tag}>.*?<rdf:li[^>]*>(.*?)</rdf:li>", xmp[:MAX_XMP], re.DOTALL):
            yield TEXT, html.unescape(found)
    if isinstance(comment := image.info.get("comment"), bytes):  # of a JPEG
        yield "Comment", comment.decode("utf-8", errors="replace")
    exif = image.getexif()
    for tag in (ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software):
        if isinstance(text := exif.get(tag), str):
            name, _, rest = text.partition(":")  # ComfyUI puts "prompt:{…}" and "workflow:{…}" into any of them
            graph = name in ("prompt", "workflow") and rest.startswith("{")
            ours = tag == ExifTags.Base.ImageDescription and text.startswith('{"request"')
            yield (name, rest) if graph else (JSON if ours else tag.name, text)
    if isinstance(comment := exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment), bytes | str):
        yield TEXT, _comment(comment)
    yield from ((str(name), value) for name, value in image.info.items() if isinstance(value, str))


def _comment(comment: bytes | str) -> str:
    """An EXIF comment, which begins with eight bytes that name its letters; UTF-16 is found in either order of bytes."""
    if isinstance(comment, str):
        return comment
    if not comment.startswith(UNICODE):
        return comment[8:].decode("utf-8", errors="replace").rstrip("\0")
    texts = [comment[8:].decode(order, errors="replace") for order in ("utf-16-be", "utf-16-le")]
    return max(texts, key=lambda text: sum(sign.isascii() for sign in text))


def daguerre_json(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """Our JSON among the texts of a picture, None where there is none."""
    try:
        value = json.loads(texts[JSON])
    except (KeyError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_provenance(path: str | Path) -> tuple[Image.Image, Provenance]:
    """A picture and where it comes from.

    Raises:
        DaguerreError: the file is no picture, or one that was not made here.
    """
    image, texts = read_image_texts(path)
    if (data := daguerre_json(texts)) is None:
        raise DaguerreError(f"'{path}' carries no request of ours; only a picture that daguerre saved can be made again.")
    return image, Provenance.from_json(data)


def _quoted(value: str) -> str:
    """A value as JSON where a bare one would end too soon."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value
