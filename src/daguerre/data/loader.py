"""Batches whose every byte is a function of (source, seed, step): a run that was stopped goes on as if it never had been.

Position p of the endless row of samples belongs to epoch p // N and place p % N; each epoch has its own permutation of the N indices, and
each sample a generator of its own, seeded by (seed, epoch, index). Who draws it, and when, changes nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from daguerre.data.dataset import Dataset, Sample
from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class Batch:
    """Images x (B, 3, H, W) float32 in [-1, 1] (or scaled latents (B, Z, h, w) in any precision, if `latent`) and their B captions.

    Captions of one meaning say the same; empty `meanings` are the captions themselves. `contraries` are nearly the captions, but not true;
    "" where there is none. `covered`, where it is known: the share of each latent's place that each class of thing covers, (B, K, h, w).
    """

    x: Tensor
    captions: list[str]
    latent: bool = False
    label_keys: list[str] = field(default_factory=list)
    hard_negatives: list[str] = field(default_factory=list)
    coverage: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, part: slice) -> "Batch":
        covered = None if self.coverage is None else self.coverage[part]
        return Batch(self.x[part], self.captions[part], self.latent, self.label_keys[part], self.hard_negatives[part], covered)


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def epoch_index(seed: int, position: int, length: int) -> int:
    """The sample at a position of the endless sequence: each epoch visits all indices 0 … length − 1 once, in its own order."""
    return int(_epoch_order(seed, position // length, length)[position % length])


def prefetch(batch: Callable[[int], Batch], start: int, workers: int, ahead: int) -> Iterator[Batch]:
    """Yield `batch(start)`, `batch(start + 1)`, … for ever, so many of them made ahead by threads."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        waiting = deque(pool.submit(batch, start + i) for i in range(ahead))
        start += ahead
        while True:
            ready = waiting.popleft().result()
            waiting.append(pool.submit(batch, start))
            start += 1
            yield ready
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class BatchLoader(TorchDataset[Batch]):
    """Batches of a source. `siblings` > 1 puts that many samples of each index next to each other, each drawn anew."""

    def __init__(self, source: Dataset, batch_size: int, seed: int, size: int | None = None, *, repeats: int = 1):
        """`size`: pixels a side; images of another size are resized. Raises DaguerreError for an empty source or impossible sizes."""
        if batch_size < 1 or repeats < 1 or batch_size % repeats:
            raise DaguerreError(f"batch_size {batch_size} must be a positive multiple of repeats {repeats}.")
        if len(source) == 0:
            raise DaguerreError("The source of images is empty; training needs at least one.")
        if seed < 0:
            raise DaguerreError(f"seed {seed} is negative; use 0 or more.")
        self.source, self.batch_size, self.seed, self.repeats = source, batch_size, seed, repeats
        self.size = size or source.size

    def __getitem__(self, step: int) -> Batch:
        return self.batch(step)

    def batch(self, step: int) -> Batch:
        """The batch of step 0, 1, 2, …; the last one of an epoch takes the first samples of the next."""
        first = step * self.batch_size
        samples = [self._sample(position) for position in range(first, first + self.batch_size)]
        return Batch(
            to_tensor(np.stack([np.asarray(sample.image) for sample in samples])),
            [sample.caption for sample in samples],
            label_keys=[sample.label_key or sample.caption for sample in samples],
            hard_negatives=[sample.hard_negative for sample in samples],
        )

    def stream(self, start: int, workers: int = 1, *, processes: bool = False, ahead: int = 4) -> Iterator[Batch]:
        """Yield the batches of steps start, start + 1, … for ever, drawn ahead by background workers; `workers` = 0 draws them here.

        Threads share one interpreter and keep up with a CPU; `processes` keep up with a fast GPU, at the price of memory and start-up.
        """
        if workers == 0:
            yield from map(self.batch, count(start))
        elif processes:
            # A generator of its own, or the loader would draw from (and shift) the global one.
            yield from DataLoader(self, None, sampler=count(start), num_workers=workers, prefetch_factor=2, generator=torch.Generator())
        else:
            yield from prefetch(self.batch, start, workers, max(ahead, workers))

    def _sample(self, position: int) -> Sample:
        group, repeat = divmod(position, self.repeats)
        epoch, index = group // len(self.source), epoch_index(self.seed, group, len(self.source))
        sample = self.source.sample(index, np.random.default_rng([self.seed, epoch, index, repeat]))
        if sample.image.size == (self.size, self.size):
            return sample
        return replace(sample, image=sample.image.resize((self.size, self.size), Image.Resampling.LANCZOS))
