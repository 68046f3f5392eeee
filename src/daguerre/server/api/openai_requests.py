"""OpenAI's image requests as requests of ours (platform.openai.com/docs/api-reference/images, as of openai 3.57).

Extra fields that other servers accept, too: negative_prompt, seed, num_inference_steps, guidance_scale, strength, fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from secrets import randbelow
from typing import Any, Literal

from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field

from daguerre.data.images import flatten_alpha
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import ImageToImage, Inpaint, InstructPix2Pix, Task, TextToImage
from daguerre.server.errors import ApiError
from daguerre.server.models import DEFAULT_FACTOR
from daguerre.server.storage.inputs import store_input
from daguerre.server.studio import Studio

OutputFormat = Literal["png", "webp", "jpeg"]
STEPS_BY_QUALITY: Mapping[str, int] = {"low": 10, "medium": 20, "high": 30, "xhigh": 40, "max": 50, "standard": 20, "hd": 30, "auto": 20}
ECHOED_QUALITIES = ("low", "medium", "high", "xhigh", "max")  # the official client accepts no others in an answer
OPENAI_MODELS = ("gpt-image-", "dall-e-", "chatgpt-image-")
EDIT_STRENGTH = 0.75
QUIET_FIELDS = ("user", "safety_identifier", "moderation")  # nothing is lost where they are ignored


class GenerationBody(BaseModel):
    """The body of `/v1/images/generations`. Unknown fields are named in `warnings`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = Field(max_length=32_000)
    model: str | None = Field(None, max_length=300)
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, max_length=20)
    quality: str | None = Field(None, max_length=20)
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: str | None = Field(None, max_length=20)
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    negative_prompt: str | None = Field(None, max_length=32_000)
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    fast: bool | None = None


@dataclass(frozen=True)
class ImageCall:
    """A call of the interface, understood.

    kind: the prefix of its stream's events. echo: what the answer repeats of the request. warnings: what is ignored.
    """

    kind: Literal["image_generation", "image_edit"]
    request: Request
    model: str
    format: OutputFormat
    compression: int | None
    as_url: bool
    stream: bool
    partial_images: int
    echo: Mapping[str, str]
    warnings: tuple[str, ...]


def read_call(studio: Studio, body: GenerationBody, image: InputImage | None = None, mask: InputImage | None = None) -> ImageCall:
    """A call from its body; an edit has an image, and may have a mask that is transparent where to generate.

    Raises:
        ApiError: a value is wrong or not supported; names it.
    """
    model, warnings = model_of_call(studio, body.model)
    facts = studio.models.facts(model)
    size, size_notes = parse_api_size(body.size, facts.factor if facts else DEFAULT_FACTOR)
    steps = _steps(body)
    ignored = [name for name in (body.model_extra or {}) if name not in QUIET_FIELDS]
    warnings += [*size_notes, *(f"{name[:60]} is not supported and was ignored." for name in ignored)]
    task: Task = TextToImage()
    if image is not None:
        task = edit_task(image, mask, size, body.strength, pix2pix=bool(facts and "pix2pix" in facts.tasks))
    values = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt or "",
        **({} if body.guidance_scale is None else {"guidance_scale": body.guidance_scale}),
        **steps,
        "seed": randbelow(2**32) if body.seed is None else body.seed,
        "num_images": body.n or 1,
        "width": size and size[0],
        "height": size and size[1],
        "fast": bool(body.fast),
    }
    defaults = {"steps": STEPS_BY_QUALITY["auto"]}
    request = studio.read_request({**values, "task": _task_json(studio, task)}, model=model, defaults=defaults)
    kind = "image_generation" if image is None else "image_edit"
    quality = {"quality": body.quality} if body.quality in ECHOED_QUALITIES else {}
    return ImageCall(
        kind,
        request,
        model,
        _output_format(body),
        body.output_compression,
        body.response_format == "url",
        bool(body.stream),
        body.partial_images or 0,
        {**quality, "background": "opaque"},
        tuple(warnings),
    )


def model_of_call(studio: Studio, name: str | None) -> tuple[str, list[str]]:
    """The model of a call, with a warning where OpenAI's names stand for the current one.

    Raises:
        ApiError: there is no such model.
    """
    if not name:
        return studio.model, []
    if name.startswith(OPENAI_MODELS):
        return studio.model, [f"{name[:60]} is not here; the images come from {studio.model}."]
    return studio.models.find(name).name, []


def parse_api_size(text: str | None, factor: int) -> tuple[tuple[int, int] | None, list[str]]:
    """(width, height) of "WxH", rounded to multiples of `factor` with a warning; None for "auto".

    Raises:
        ApiError: it is no size.
    """
    if text in (None, "", "auto"):
        return None, []
    width, _, height = str(text).lower().partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit() and int(width) and int(height)):
        raise ApiError(400, f"size is {text!r}; it is auto or WIDTHxHEIGHT, such as 512x512.", code="invalid_value", param="size")
    rounded = max(round(int(width) / factor), 1) * factor, max(round(int(height) / factor), 1) * factor
    note = [] if rounded == (int(width), int(height)) else [f"The size was rounded to {rounded[0]}x{rounded[1]}, multiples of {factor}."]
    return rounded, note


def edit_task(image: InputImage, mask: InputImage | None, size: tuple[int, int] | None, strength: float | None, *, pix2pix: bool) -> Task:
    """The task of an edit: inpainting where the mask or the image is transparent, else a change of the whole image.

    size: the image and its mask are resized to it; None keeps their size.
    """
    picture = image.pixels
    if mask is not None:
        if not mask.has_alpha:
            raise ApiError(400, "mask has no transparent part; it is transparent where to generate.", code="invalid_value", param="mask")
        if mask.pixels.size != picture.size:
            raise ApiError(
                400,
                f"mask has {mask.pixels.size} pixels and image {picture.size}; give both the same size.",
                code="invalid_value",
                param="mask",
            )
    source = mask or (image if image.has_alpha else None)
    if size is not None and size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    flat = InputImage.from_any(flatten_alpha(picture) if source is None or mask is not None else _opaque(picture))
    if source is None:
        return InstructPix2Pix(flat) if pix2pix else ImageToImage(flat, EDIT_STRENGTH if strength is None else strength)
    hole = ImageChops.invert(source.pixels.getchannel("A")).resize(picture.size)
    return Inpaint(flat, InputImage.from_any(hole), 1.0 if strength is None else strength)


def _opaque(image: Image.Image) -> Image.Image:
    """The colours of an image, also where it is transparent."""
    return image.convert("RGBA").convert("RGB")


def _task_json(studio: Studio, task: Task) -> dict[str, Any]:
    """A task as JSON for `Studio.read_request`, its images stored."""
    images = {name: {"id": store_input(studio.store, image)} for name, image in task.input_images.items()}
    values = {each.name: getattr(task, each.name) for each in fields(task) if each.name not in images}
    return {"name": task.name, **values, **images}


def _steps(body: GenerationBody) -> dict[str, int]:
    """The sampler's steps: as given, else by the quality; none if the caller leaves both open."""
    if body.quality is not None and body.quality not in STEPS_BY_QUALITY:
        choices = ", ".join(STEPS_BY_QUALITY)
        raise ApiError(400, f"quality is {body.quality!r}; it is one of {choices}.", code="invalid_value", param="quality")
    if body.num_inference_steps is not None:
        return {"steps": body.num_inference_steps}
    return {} if body.quality in (None, "auto") else {"steps": STEPS_BY_QUALITY[body.quality]}


def _output_format(body: GenerationBody) -> OutputFormat:
    if body.background == "transparent":
        raise ApiError(400, "A transparent background is not supported; omit background.", code="unsupported_value", param="background")
    known: Mapping[str, OutputFormat] = {"png": "png", "webp": "webp", "jpeg": "jpeg", "jpg": "jpeg"}
    name = body.output_format or "png"
    if name not in known:
        raise ApiError(400, f"output_format is {name!r}; it is png, webp or jpeg.", code="unsupported_value", param="output_format")
    return known[name]
