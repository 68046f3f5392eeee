"""Textual-inversion embeddings in images, as web UIs share them.

As text: the PNG's `sd-ti-embedding` is base64 of JSON, whose tensors are {"TORCHTENSOR": lists}.
As pixels: columns of data at the left and right of the image, one byte in the low four bits of two pixels, the data XORed with a linear
congruential generator and compressed with zlib.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daguerre.data.images import decode_image
from daguerre.errors import DaguerreError

IMAGE_SUFFIXES = (".png", ".webp")
TEXT_KEY = "sd-ti-embedding"
MAX_JSON_BYTES = 64 << 20  # 75 vectors of 1280 numbers take about 2 MB


def read_embedding_image(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of the embedding in an image by name, and its word.

    Raises:
        DaguerreError: the image has no embedding.
    """
    image, _ = decode_image(path)
    try:
        text = image.info.get(TEXT_KEY)
        content = json.loads(base64.b64decode(text)) if isinstance(text, str) else json.loads(_inflate(_hidden_bytes(image)))
        params = {name: _tensor(value) for name, value in content["string_to_param"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, zlib.error, binascii.Error) as error:
        raise DaguerreError(f"'{path}' is an image without an embedding; give a file of an embedding, such as .safetensors.") from error
    if not params or not all(bool(tensor.isfinite().all()) for tensor in params.values()):
        raise DaguerreError(f"The embedding in '{path}' is empty, or has NaN or infinity; download it again.")
    name = content.get("name")
    return params, name if isinstance(name, str) and name else None


def _tensor(value: Mapping[str, Any]) -> Tensor:
    return torch.tensor(value["TORCHTENSOR"], dtype=torch.float32)


def _inflate(data: bytes) -> bytes:
    """Decompress zlib data of at most `MAX_JSON_BYTES`; what follows its end is ignored."""
    inflater = zlib.decompressobj()
    result = inflater.decompress(data, MAX_JSON_BYTES)
    if not inflater.eof:
        raise ValueError("the data is cut off or too large")
    return result


def _hidden_bytes(image: Image.Image) -> bytes:
    """The bytes in the low bits of the outer columns."""
    pixels = np.asarray(image.convert("RGB")).astype(np.uint8)
    left, top, right, bottom = _bounding_box((pixels > 0).all(axis=2))
    low = pixels[top:bottom, left:right] & 15
    empty = np.flatnonzero((low == 0).all(axis=(0, 2)))
    if len(empty) < 2:
        raise ValueError("there are no columns of data")
    lower, upper = low[:, : empty[0]], low[:, empty[-1] + 1 :]
    lower, upper = (_xor(part) for part in (lower, upper))
    size = min(lower.size, upper.size)
    return ((upper.reshape(-1)[:size] << 4) | lower.reshape(-1)[:size]).astype(np.uint8).tobytes()


def _bounding_box(mask: Any) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels that are set in a mask (H, W). Raises IndexError if there are none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _xor(part: np.ndarray) -> np.ndarray:
    """A block (H, W, 3) XORed with the generator's numbers, restarted for each block."""
    numbers, state = np.zeros(part.size, dtype=np.uint8), 0
    for i in range(part.size):
        state = (1664525 * state + 1013904223) % (1 << 32)
        numbers[i] = (state % 255) & 15
    return part ^ numbers.reshape(part.shape)
