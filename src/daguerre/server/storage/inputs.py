"""Images from callers: decoded as PNG, JPEG or WebP after a check of the size in their header, and written again without metadata.

An image is given as a data URI or as base64, or by the id of one that the server has. Addresses are never fetched.
"""

import base64
import binascii
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from daguerre.adapters.record import MAPPED_KINDS
from daguerre.atomic_io import atomic_write
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.metadata.containers import image_texts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import TASKS, is_image, task_from_json
from daguerre.server.adapters import AdapterLibrary
from daguerre.server.errors import ApiError
from daguerre.server.storage.image_records import ID_LENGTH, input_id
from daguerre.server.storage.store import Store

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URI = re.compile(r"data:[\w.+-]*/[\w.+-]*(;[\w.=+-]+)*,\s*", re.IGNORECASE)
_IMAGE_ID = re.compile(r"[0-9a-f]{16,64}(-\d{1,4})?")


@dataclass(frozen=True)
class Upload:
    """A decoded image and the texts in its file, by name."""

    image: InputImage
    texts: Mapping[str, str]


def is_image_id(text: str) -> bool:
    """Whether a text has the form of an id of an image or an input. Nothing else reaches a file name."""
    return _IMAGE_ID.fullmatch(text) is not None


def bytes_of_text(text: str, param: str) -> bytes:
    """The bytes of a data URI or of base64, with or without line breaks.

    Raises:
        ApiError: it is neither, or it is an address.
    """
    if re.match(r"\s*(https?|file|ftp):", text, re.IGNORECASE):
        raise ApiError(
            400, f"{param} is an address. Addresses are not fetched; send the image itself as base64.", code="invalid_image", param=param
        )
    content = _DATA_URI.sub("", text, count=1) if text.lstrip()[:5].lower() == "data:" else text
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param} is not an image in base64, nor a data URI with one.", code="invalid_image", param=param) from None


def decode_upload(data: bytes, param: str, max_pixels: int) -> Upload:
    """Decode an image file of a caller.

    Raises:
        ApiError: it is no PNG, JPEG or WebP, it is damaged, or it has more than `max_pixels` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ApiError(
                        413,
                        f"{param} has {image.width}×{image.height} pixels, more than {max_pixels // 10**6} million. Make it smaller.",
                        code="image_too_large",
                        param=param,
                    )
                image.load()
                texts = image_texts(image)
                return Upload(InputImage.from_any(_first_frame(image)), texts)
    except Image.DecompressionBombError:
        raise ApiError(413, f"{param} has too many pixels. Make it smaller.", code="image_too_large", param=param) from None
    except UnidentifiedImageError:
        raise ApiError(400, f"{param} is no PNG, JPEG or WebP image.", code="invalid_image", param=param) from None
    except (OSError, SyntaxError, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise ApiError(400, f"{param} cannot be read: {str(error)[:200]}.", code="invalid_image", param=param) from None


def store_input(store: Store, image: InputImage) -> str:
    """Keep an input image; returns its id."""
    name = input_id(image)
    path = store.path("inputs", name)
    if not path.exists():
        with atomic_write(path) as file:
            image.pixels.save(file, "PNG")
    return name


def open_stored(store: Store, name: str, param: str = "id") -> InputImage:
    """An input image, or an image of the gallery, by its id.

    Raises:
        ApiError: there is none.
    """
    if is_image_id(name):
        for kind in ("inputs", "images"):
            if (path := store.path(kind, name)).is_file():
                with Image.open(path, formats=("PNG",)) as image:
                    image.load()
                return replace(InputImage.from_any(_first_frame(image)), path=None)
    raise ApiError(404, f"{param}: there is no image {name[:80]!r} here.", code="image_not_found", param=param)


def read_request(store: Store, adapters: AdapterLibrary, values: Mapping[str, Any], max_pixels: int) -> Request:
    """A request from JSON, in which images are given by id or as base64, and adapters by name; new images are stored.

    Raises:
        ApiError: an image cannot be read. DaguerreError: another value is wrong; names it.
    """
    given, prompt = values.get("adapters") or [], values.get("prompt", "")
    if not isinstance(given, list | tuple):
        raise ApiError(422, "adapters is a list.", code="invalid_request", param="adapters")
    records = adapters.records(given, [prompt] if isinstance(prompt, str) else [])
    maps = _read_maps(store, values.get("control_images") or (), sum(record.kind in MAPPED_KINDS for record in records), max_pixels)
    values = {**values, "adapters": records, "control_images": maps}
    task = values.get("task")
    if not isinstance(task, Mapping):
        return Request.from_json(values)
    task_class = TASKS.get(str(task.get("name")))
    images = {name for name, field in (task_class.__dataclass_fields__ if task_class else {}).items() if is_image(field)}
    opened = {
        name: _read_image(store, value, f"task.{name}", max_pixels) for name, value in task.items() if name in images and value is not None
    }
    return Request.from_json({**values, "task": task_from_json({**task, **opened})})


def _read_maps(store: Store, given: Any, count: int, max_pixels: int) -> tuple[InputImage, ...]:
    """The condition maps of a request with so many ControlNets."""
    if not isinstance(given, list | tuple) or len(given) != count:
        message = f"control_images is a list with one map for each ControlNet among the adapters, here {count}, in the same order."
        raise ApiError(422, message, code="invalid_request", param="control_images")
    return tuple(_read_image(store, value, f"control_images.{number}", max_pixels) for number, value in enumerate(given))


def _read_image(store: Store, value: Any, param: str, max_pixels: int) -> InputImage:
    if isinstance(value, str):
        value = {"data": value}
    if isinstance(value, Mapping):
        if isinstance(data := value.get("data"), str):
            image = decode_upload(bytes_of_text(data, param), param, max_pixels).image
            store_input(store, image)
            return image
        name = value.get("id") or (value["sha256"][:ID_LENGTH] if isinstance(value.get("sha256"), str) else None)
        if isinstance(name, str):
            image = open_stored(store, name, param)
            store_input(store, image)  # a gallery image may be deleted later, and what came from it stays reproducible
            return image
    raise ApiError(422, f'{param} is {{"id": …}} or {{"data": …}}; got {type(value).__name__}.', code="invalid_image", param=param)


def _first_frame(image: Image.Image) -> Image.Image:
    """The pixels of an opened image, rotated as EXIF states, without file name and metadata."""
    image = ImageOps.exif_transpose(image)
    plain = image.copy()
    transparency = image.info.get("transparency")
    plain.info = {} if transparency is None else {"transparency": transparency}
    return plain
