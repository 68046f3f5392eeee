"""Textual inversion: new words for the tokenizer with learned vectors (Gal et al. 2022, arXiv:2208.01618).

A word has n vectors for each text encoder and takes n positions in the prompt. Files: web UI (.pt, .safetensors, images), diffusers
(.bin, .safetensors, for SDXL two files in a folder), SDXL pairs (clip_l, clip_g).

Images hold an embedding as text (the PNG's `sd-ti-embedding` is base64 of JSON, whose tensors are {"TORCHTENSOR": lists}), or as pixels:
columns of data at the left and right, one byte in the low four bits of two pixels, XORed with a linear congruential generator and
compressed with zlib.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daguerre.adapters.record import AdapterRecord, adapter_stem
from daguerre.data.images import decode_image
from daguerre.errors import DaguerreError, join_names
from daguerre.weights.hashing import files_hash
from daguerre.weights.tensors.reader import open_tensors
from daguerre.weights.tensors.safetensors import save_safetensors

WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL's second text encoder"}
NESTED = re.compile(r"string_to_param\.|string_to_token\.")
PAIR_KEYS = ("clip_l", "clip_g")
FOLDER_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors", "learned_embeds.bin", "learned_embeds_2.bin")
IMAGE_SUFFIXES = (".png", ".webp")
TEXT_KEY = "sd-ti-embedding"
MAX_JSON_BYTES = 64 << 20  # 75 vectors of 1280 numbers take about 2 MB


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word and its vectors.

    vectors: (n, d) for each text encoder, by its width d.
    """

    word: str
    vectors: Mapping[int, Tensor]
    record: AdapterRecord

    @property
    def count(self) -> int:
        """The number of positions that the word takes in a prompt."""
        return len(next(iter(self.vectors.values())))


def load_embedding(path: str | Path, *, word: str | None = None) -> Embedding:
    """Read a textual-inversion embedding from a file, an image, or a folder of diffusers.

    Args:
        word: by which prompts use it. Default: the name of the file; of diffusers' files the name in the file; of images the name in it.

    Raises:
        DaguerreError: the file is no embedding, is damaged, or has vectors that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not files:
            raise DaguerreError(f"'{path}' has no embedding; a folder has {' or '.join(FOLDER_FILES[:2])}.")
    else:
        files = [path]
    named = [_read(file) for file in files]
    tensors = [tensor for tensors, _ in named for tensor in tensors]
    found = word or next((name for _, name in named if name), None) or adapter_stem(path)
    vectors = {tensor.shape[1]: tensor for tensor in tensors}
    if len(vectors) < len(tensors) or len({len(tensor) for tensor in tensors}) != 1:
        raise DaguerreError(f"'{path}' has vectors of the shapes {[list(t.shape) for t in tensors]}; one embedding has one word.")
    record = AdapterRecord("embedding", found, str(path), files_hash(files))
    return Embedding(found, vectors, record)


def embedding_of(word: str, tensors: Mapping[str, Tensor], where: object) -> Embedding:
    """An embedding from tensors (n, d) or (d,), such as those that a LoRA file bundles."""
    vectors = {tensor.shape[-1]: _as_rows(tensor, name, where) for name, tensor in tensors.items()}
    return Embedding(word, vectors, AdapterRecord("embedding", word))


def save_embedding(embedding: Embedding, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write an embedding as a .safetensors file that web UIs, ComfyUI and diffusers read; for SDXL a pair clip_l, clip_g.

    diffusers finds the word in the file, the others use the file's name.

    Raises:
        DaguerreError: the file cannot be written.
    """
    names = (embedding.word,) if len(embedding.vectors) == 1 else PAIR_KEYS
    save_safetensors(path, dict(zip(names, embedding.vectors.values(), strict=True)), metadata)
    return Path(path)


def _read(path: Path) -> tuple[list[Tensor], str | None]:
    """The vectors in one file, and the word that the file itself gives them."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        tensors, name = read_embedding_image(path)
        return [_as_rows(tensor, key, path) for key, tensor in tensors.items()], name
    file = open_tensors(path)
    names = [name for name, shape in file.shapes.items() if shape.is_floating_point() and not name.startswith("string_to_token.")]
    nested = [name for name in names if NESTED.match(name)]
    names = nested or names
    pair = [name for name in names if name in PAIR_KEYS]
    if pair:
        names = pair
    elif len(names) != 1:
        raise DaguerreError(f"'{path}' is no embedding of one word: it has {len(names)} tensors ({join_names(names)}).")
    tensors = file.read(names)
    diffusers_name = names[0] if not (pair or nested or names[0] == "emb_params") else None
    return [_as_rows(tensor, name, path) for name, tensor in tensors.items()], diffusers_name


def _as_rows(tensor: Tensor, name: str, where: object) -> Tensor:
    """Vectors (n, d), float32. Raises DaguerreError for another shape."""
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    if tensor.ndim != 2 or not tensor.numel():
        raise DaguerreError(f"{name!r} in '{where}' has the shape {list(tensor.shape)}; vectors of an embedding have (n, d).")
    return tensor.float()


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
