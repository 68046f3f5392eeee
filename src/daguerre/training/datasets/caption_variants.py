"""Batches of captions with a variant of each, for training a text encoder without images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from daguerre.data.caption_variants import vary_caption
from daguerre.data.order import epoch_index


@dataclass(frozen=True)
class CaptionBatch:
    """B captions and a variant of each, which says the same."""

    captions: list[str]
    variants: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, part: slice) -> "CaptionBatch":
        return CaptionBatch(self.captions[part], self.variants[part])


class CaptionVariants:
    """Batches of a list of captions, shuffled in each epoch; each epoch has other variants.

    fits: whether a text is short enough for the text encoder; of a caption whose variant is too long, the batch has the caption itself.
    """

    def __init__(self, captions: Sequence[str], batch_size: int, seed: int, fits: Callable[[str], bool]):
        self.captions, self.batch_size, self.seed, self.fits = captions, batch_size, seed, fits

    def batch(self, step: int) -> CaptionBatch:
        """The batch of one step; a batch may span two epochs."""
        chosen, variants = [], []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = position // len(self.captions), epoch_index(self.seed, position, len(self.captions))
            caption = self.captions[index]
            variant = vary_caption(np.random.default_rng([self.seed, epoch, index]), caption)
            chosen.append(caption)
            variants.append(variant if self.fits(variant) else caption)
        return CaptionBatch(chosen, variants)

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[CaptionBatch]:
        """The batches of steps start, start + 1, …; they take no time to compute, so no worker is used."""
        return map(self.batch, count(start))
