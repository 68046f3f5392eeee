"""What every source of training images gives, and how a combination of words is kept for measuring.

A source is a numbered set; `sample(index, rng)` is a pure function of its arguments, so whoever fixes the order and the generators
(`batches.py`) has fixed every byte.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

Split = Literal["train", "all"]
HELD_OUT = 0.1  # share of combinations that training never sees


@dataclass(frozen=True)
class Sample:
    """One image, RGB, square, and what is said of it.

    `meaning` is the same for captions that say the same in other words; `contrary`, if any, is a caption much like it that is not true.
    """

    image: Image.Image
    caption: str
    label_key: str = ""
    hard_negative: str = ""


class Dataset(Protocol):
    """A numbered set of images with captions, possibly drawn anew each time."""

    @property
    def size(self) -> int:
        """Pixels a side of the images it gives."""
        ...

    @property
    def key(self) -> str:
        """A short text that changes when the samples would: for caches and checkpoints."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The image and caption of one index, 0 ≤ index < len; everything left to chance is drawn from `rng`."""
        ...

    def captions(self, count: int, seed: int) -> list[str]:
        """`count` captions as training would meet them, without drawing an image: for vocabularies and previews."""
        ...


@dataclass(frozen=True)
class Subset:
    """A source of what is made of another one's samples, or of some of them: number n is `draw(indices[n], rng)`."""

    size: int
    key: str
    sample_item: Callable[[int, np.random.Generator], Sample]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        return self.sample_item(self.indices[index], rng)

    def captions(self, count: int, seed: int) -> list[str]:
        return sample_captions(lambda index, rng: self.sample(index, rng).caption, len(self), count, seed)


def sample_captions(say: Callable[[int, np.random.Generator], str], length: int, count: int, seed: int) -> list[str]:
    """`count` captions of any of the indices 0 ≤ index < length, as `say(index, rng)` gives them."""
    order = np.random.default_rng(seed)
    return [say(int(order.integers(length)), np.random.default_rng([seed, i])) for i in range(count)]


def is_held_out(kind: str, *parts: str) -> bool:
    """Whether a combination, such as `("colour", "apple", "blue")`, is kept for measuring: a stable hash, about one in ten."""
    digest = hashlib.blake2b("\0".join((kind, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT
