"""The interface of a dataset, and which combinations of words are held out for evaluation.

`sample(index, rng)` is a pure function of its arguments, so the order and the generators of `loader.py` determine every batch.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

Split = Literal["train", "all"]
HELD_OUT = 0.1  # fraction of combinations that training never shows


@dataclass(frozen=True)
class Sample:
    """An RGB image, square except with aspect-ratio buckets, and its caption.

    `label_key` is equal for captions that describe the same content in other words; `hard_negative` is a similar but false caption, or "".
    `label` is the name of the image's class, or "".
    """

    image: Image.Image
    caption: str
    label_key: str = ""
    hard_negative: str = ""
    label: str = ""


class Dataset(Protocol):
    """An indexed set of images with captions; samples of one index may differ by random augmentation."""

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        ...

    @property
    def rendered(self) -> bool:
        """True if every epoch has new images; False for files."""
        ...

    @property
    def key(self) -> str:
        """A short text that changes when the samples change: identifies the dataset in caches and checkpoints."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The image and caption of an index, 0 ≤ index < len; all randomness comes from `rng`."""
        ...

    def captions(self, count: int, seed: int) -> list[str]:
        """`count` captions as in training, without the images: for vocabularies and previews."""
        ...


@dataclass(frozen=True)
class Subset:
    """A dataset derived from some indices of another one: sample n is `sample_item(indices[n], rng)`.

    shards, fetch_shard: see `FolderDataset`.
    """

    size: int
    key: str
    sample_item: Callable[[int, np.random.Generator], Sample]
    indices: Sequence[int]
    rendered: bool = True
    shards: np.ndarray | None = None
    fetch_shard: Callable[[int], None] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        return self.sample_item(self.indices[index], rng)

    def captions(self, count: int, seed: int) -> list[str]:
        return sample_captions(lambda index, rng: self.sample(index, rng).caption, len(self), count, seed)


def sample_captions(caption: Callable[[int, np.random.Generator], str], length: int, count: int, seed: int) -> list[str]:
    """`count` captions `caption(index, rng)` of random indices 0 ≤ index < length."""
    order = np.random.default_rng(seed)
    return [caption(int(order.integers(length)), np.random.default_rng([seed, i])) for i in range(count)]


def is_held_out(kind: str, *parts: str) -> bool:
    """Whether a combination such as ("colour", "apple", "blue") is held out from training: by a stable hash, about one in ten."""
    digest = hashlib.blake2b("\0".join((kind, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT
