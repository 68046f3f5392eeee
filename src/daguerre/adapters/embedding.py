"""Textual inversion: new words for the tokenizer with learned vectors (Gal et al. 2022, arXiv:2208.01618).

A word has n vectors for each text encoder and takes n positions in the prompt. Files: web UI (.pt, .safetensors, images), diffusers
(.bin, .safetensors, for SDXL two files in a folder), SDXL pairs (clip_l, clip_g).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from daguerre.adapters.embedding_image import IMAGE_SUFFIXES, read_embedding_image
from daguerre.adapters.record import AdapterRecord, adapter_stem
from daguerre.errors import DaguerreError, join_names
from daguerre.weights.hashing import files_hash
from daguerre.weights.tensors.reader import open_tensors

WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL's second text encoder"}
NESTED = re.compile(r"string_to_param\.|string_to_token\.")
PAIR_KEYS = ("clip_l", "clip_g")
FOLDER_FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors", "learned_embeds.bin", "learned_embeds_2.bin")


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
