"""Metadata in saved images: the `parameters` text that other programs read, and the whole request as JSON under `daguerre`.

    A RED APPLE
    Negative prompt: …
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Trailing, CFG scale: 2, Seed: 7, Size: 128x128, Model: emoji, Version: …

PNG stores both as text chunks; JPEG and WebP store the text as EXIF UserComment and the JSON as ImageDescription. `metadata.readers` reads
what other programs write.
"""

import json
import os
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from daguerre.errors import DaguerreError
from daguerre.limits import MAX_PIXELS
from daguerre.pipelines.metadata.containers import JSON, TEXT, UNICODE, image_texts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import VQ_PRIOR
from daguerre.version import VERSION
from daguerre.weights.catalog import ASSETS, INDEX
from daguerre.weights.diffusers.folder_names import find_weights

if TYPE_CHECKING:
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior

OUTPUT_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
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
MAX_JPEG_EXIF = 65_533  # bytes, what one segment of a JPEG holds
DEFAULT_ENGINE = "torch"
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Provenance:
    """Where an image comes from: everything that its bytes depend on.

    Attributes:
        index: of the image among those of the request; None for a grid of them all.
        model: the model's name.
        model_hash: of its files (see `weights.hashing.identity`); None for a model without files.
        model_path: where the files were; None if the name is enough to find them.
        threads: how many computed on the CPU; None in images of earlier versions.
        engine: what computed the UNet (see `runtime.engines`).
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
    threads: int | None = None
    engine: str = DEFAULT_ENGINE

    def __post_init__(self) -> None:
        texts = self.model, self.version, self.torch, self.device, self.dtype, self.model_hash or "", self.model_path or "", self.engine
        known = self.index is None or (type(self.index) is int and 0 <= self.index < len(self.request.prompts) * self.request.num_images)
        counted = self.threads is None or (type(self.threads) is int and self.threads > 0)
        if not known or not counted or not all(isinstance(text, str) for text in texts) or self.dtype not in DTYPE_NAMES:
            raise TypeError("provenance fields must be texts, the index one of the request's images, and threads a positive number")

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
            raise DaguerreError("The request in the image cannot be read; it was written by another version or edited.") from error


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
        threads=torch.get_num_threads(),
        engine=_engine_name(model),
    )


def _engine_name(model: "LatentDiffusion | LatentPrior") -> str:
    engine = getattr(model, "engine", None)  # a prior over codes has none
    return DEFAULT_ENGINE if engine is None else engine.name


def _model_path(files: tuple[Path, ...]) -> str | None:
    """The file or folder that a model was read from; None for embedded models and for models put together from several sources."""
    if not files:
        return None
    if len({file.is_absolute() for file in files}) > 1:  # the autoencoder comes from elsewhere
        return None
    path = Path(files[0] if len(files) == 1 else os.path.commonpath(files))
    if find_weights({path.name}):  # the only network of a folder, which is the model
        path = next((folder for folder in list(path.parents)[:2] if (folder / INDEX).is_file()), path)
    single_source = path.is_file() or (path / INDEX).is_file()
    return str(path) if single_source and not path.resolve().is_relative_to(ASSETS.resolve()) else None


def parameters(provenance: Provenance, size: tuple[int, int]) -> str:
    """The text that other programs write and read, for an image of `size` (width, height) pixels."""
    index, model_hash = provenance.index, provenance.model_hash
    request = provenance.request if index is None else provenance.request.split()[index]
    values = {
        **(_prior_parameters(request) if request.sampler == VQ_PRIOR else _diffusion_parameters(request)),
        "Seed": request.seed,
        **({} if index is None else {"Size": f"{size[0]}x{size[1]}"}),  # the size of a grid is not one that can be requested
        **({} if model_hash is None else {"Model hash": model_hash[:10]}),
        **_adapter_parameters(request),
        "Model": provenance.model,
        "Version": f"daguerre {provenance.version}",
    }
    lines = [" | ".join(_with_lora_tags(prompt, request) for prompt in request.prompts)]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items()))
    return "\n".join(lines)


def _diffusion_parameters(request: Request) -> dict[str, object]:
    variation = request.variation
    return {
        "Steps": request.steps,
        **({"Sampler": SAMPLER_LABELS.get(request.sampler, request.sampler)} if request.sampler else {}),
        **({"Schedule type": request.spacing.replace("_", " ").capitalize()} if request.spacing else {}),
        **({} if request.guidance_scale is None else {"CFG scale": f"{request.guidance_scale:g}"}),
        **({"CFG rescale": f"{request.guidance_rescale:g}"} if request.guidance_rescale else {}),
        **({} if request.clip_skip is None else {"Clip skip": request.clip_skip}),
        **({"Skipped steps": "forecast"} if request.fast else {}),
        **request.task.parameters(),
        **({} if variation is None else {"Variation seed": variation.seed, "Variation seed strength": f"{variation.strength:g}"}),
        **({} if request.tiling == "none" else {"Tiling": True}),
    }


def _adapter_parameters(request: Request) -> dict[str, object]:
    hashes = [f"{record.name}: {record.short_hash}" for record in request.adapters if record.kind == "lora" and record.short_hash]
    return {"Lora hashes": ", ".join(hashes)} if hashes else {}


def _with_lora_tags(prompt: str, request: Request) -> str:
    """A prompt with a tag for each LoRA that it does not name itself, by which other programs find it."""
    loras = [record for record in request.adapters if record.kind == "lora"]
    loras = [record for record in loras if not re.search(rf"<(lora|lyco):{re.escape(record.name)}[:>]", prompt)]
    tags = [
        f"<lora:{record.name}:{record.scale:g}>"
        if record.text_scale in (None, record.scale)
        else f"<lora:{record.name}:{record.text_scale:g}:{record.scale:g}>"
        for record in loras
    ]
    return " ".join([prompt, *tags])


def _prior_parameters(request: Request) -> dict[str, object]:
    top_k = {} if request.top_k is None else {"Top k": request.top_k}
    return {"Sampler": VQ_PRIOR, "Temperature": f"{request.temperature:g}", **top_k, "Top p": f"{request.top_p:g}"}


def write_image_with_metadata(file: BinaryIO, image: Image.Image, suffix: str, provenance: Provenance) -> None:
    """Encode an image with its metadata; `suffix` is a key of `OUTPUT_FORMATS`.

    Raises:
        DaguerreError: the metadata is longer than a JPEG can hold.
    """
    write_image_with_texts(file, image, suffix, parameters(provenance, image.size), provenance.to_json())


def write_image_with_texts(file: BinaryIO, image: Image.Image, suffix: str, text: str | None, value: Mapping[str, Any]) -> None:
    """Encode an image with the text that other programs read, if any, and a JSON object; errors as in `write_image_with_metadata`."""
    data = json.dumps(value)
    if OUTPUT_FORMATS[suffix] == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text is not None:
            (chunks.add_text if text.isascii() else chunks.add_itxt)(TEXT, text)
        chunks.add_text(JSON, data)
        image.save(file, "PNG", pnginfo=chunks)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = data
    if text is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = UNICODE + text.encode("utf-16-be")
    if OUTPUT_FORMATS[suffix] == "JPEG" and (length := len(exif.tobytes())) > MAX_JPEG_EXIF:
        raise DaguerreError(f"The request is {length} bytes long, and a JPEG holds {MAX_JPEG_EXIF}; save the image as .png or .webp.")
    image.save(file, OUTPUT_FORMATS[suffix], exif=exif, **({"lossless": True} if OUTPUT_FORMATS[suffix] == "WEBP" else {"quality": 95}))


def read_image_texts(path: str | Path) -> tuple[Image.Image, dict[str, str]]:
    """An image and its metadata texts, by their names in a PNG: `parameters`, `daguerre`, those of other programs.

    Raises:
        DaguerreError: the file is missing, truncated, no image, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images; here that is an error
            with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DaguerreError(f"'{path}' is {image.width}×{image.height} pixels, more than {MAX_PIXELS // 10**6} million.")
                image.load()
                return image, image_texts(image)
    except UnidentifiedImageError as error:
        raise DaguerreError(f"'{path}' is not an image that can be read; use PNG, JPEG or WebP.") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DaguerreError(f"Cannot read the image '{path}': {reason}.") from error


def daguerre_json(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """The JSON object that daguerre wrote among the texts of an image; None if there is none."""
    try:
        value = json.loads(texts[JSON])
    except (KeyError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_provenance(path: str | Path) -> tuple[Image.Image, Provenance]:
    """An image and its provenance.

    Raises:
        DaguerreError: the file is no image, or daguerre did not save it.
    """
    image, texts = read_image_texts(path)
    data = daguerre_json(texts)
    if data is not None and "cells" in data:
        raise DaguerreError(f"'{path}' is a comparison of several images; choose one of them with --cell ROW,COLUMN.")
    if data is None:
        raise DaguerreError(f"'{path}' holds no request of daguerre; only images that daguerre saved can be reproduced.")
    return image, Provenance.from_json(data)


def _quoted(value: str) -> str:
    """A value, as JSON if it could be read as more or less than itself."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\r\n"[{') or value != value.strip() else value
