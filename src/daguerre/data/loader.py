"""Batches that are a pure function of (dataset, seed, step), so that a resumed run continues exactly as without interruption.

`order` says which samples a batch has. Each sample has its own generator with seed (seed, epoch, index). Which worker loads it, and when,
does not matter.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from daguerre.data.dataset import Dataset, Sample
from daguerre.data.images import to_tensor
from daguerre.data.order import SHUFFLED_SHARDS, BatchOrder
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError

FETCHERS = 2  # threads that fetch shards


@dataclass(frozen=True)
class Batch:
    """Images x (B, 3, H, W) float32 in [−1, 1], or if `latent` scaled latents (B, Z, h, w) in any precision, and their B captions.

    label_keys: captions with equal keys describe the same content; if empty, the captions are the keys. hard_negatives: false captions
    that differ little from the true ones, "" for none. labels: the names of the images' classes, "" for none.
    coverage: fraction of each latent position that each object class covers,
    (B, K, h, w), if known. condition: what the network is conditioned on, if it is not the captions.
    """

    x: Tensor
    captions: list[str]
    latent: bool = False
    label_keys: list[str] = field(default_factory=list)
    hard_negatives: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    coverage: Tensor | None = None
    condition: Conditioning | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, part: slice) -> "Batch":
        coverage = None if self.coverage is None else self.coverage[part]
        texts = self.captions[part], self.latent, self.label_keys[part], self.hard_negatives[part], self.labels[part]
        return Batch(self.x[part], *texts, coverage, self.condition and self.condition[part])


def prefetch(batch: Callable[[int], Batch], start: int, workers: int, ahead: int) -> Iterator[Batch]:
    """Yield `batch(start)`, `batch(start + 1)`, … without end; threads compute up to `ahead` of them in advance."""
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


def fetch_ahead(batches: Iterable[Batch], order: BatchOrder, start: int, fetch: Callable[[int], None]) -> Iterator[Batch]:
    """Yield the batches of steps start, start + 1, …, while threads fetch the shards of the batches that come a block of shards later."""
    assert order.shards is not None
    distance = math.ceil(SHUFFLED_SHARDS * order.length / (int(order.shards.max()) + 1) / order.batch_size)
    wanted, stopped, latest, planned = SimpleQueue[int](), Event(), deque[int](maxlen=2 * SHUFFLED_SHARDS), start

    def work() -> None:
        while (number := wanted.get()) >= 0 and not stopped.is_set():
            with suppress(DaguerreError):  # the batch that needs the shard has the error
                fetch(number)

    try:
        for step, batch in enumerate(batches, start):
            if planned == start:
                for _ in range(FETCHERS):
                    Thread(target=work, name="shards", daemon=True).start()
            for following in range(planned, step + distance + 1):
                for number in {int(order.shards[index]) for _, index in order.batch(following)} - {*latest}:
                    latest.append(number)
                    wanted.put(number)
            planned = step + distance + 1
            yield batch
    finally:
        stopped.set()
        for _ in range(FETCHERS):
            wanted.put(-1)


class BatchLoader(TorchDataset[Batch]):
    """Batches of a dataset. With `repeats` > 1 each index gives that many adjacent samples with different generators."""

    def __init__(
        self,
        source: Dataset,
        batch_size: int,
        seed: int,
        size: int | None = None,
        *,
        repeats: int = 1,
        buckets: Sequence[int] | np.ndarray = (),
    ):
        """Images of another side than `size` pixels are resized. buckets: see `BatchOrder`.

        Raises DaguerreError for an empty dataset or invalid numbers.
        """
        if batch_size < 1 or repeats < 1 or batch_size % repeats:
            raise DaguerreError(f"batch_size is {batch_size}; it must be a positive multiple of repeats ({repeats}).")
        if len(source) == 0:
            raise DaguerreError("The dataset has no images; training needs at least one.")
        if seed < 0:
            raise DaguerreError(f"seed is {seed}; it must be 0 or more.")
        self.source, self.batch_size, self.seed, self.repeats = source, batch_size, seed, repeats
        self.size = size
        self.order = BatchOrder(len(source), batch_size // repeats, seed, buckets, getattr(source, "shards", None))

    def __getitem__(self, step: int) -> Batch:
        return self.batch(step)

    def batch(self, step: int) -> Batch:
        """The batch of step 0, 1, 2, …; a batch may contain the last samples of one epoch and the first of the next."""
        samples = [self._sample(epoch, index, repeat) for epoch, index in self.order.batch(step) for repeat in range(self.repeats)]
        return Batch(
            to_tensor(np.stack([np.asarray(sample.image) for sample in samples])),
            [sample.caption for sample in samples],
            label_keys=[sample.label_key or sample.caption for sample in samples],
            hard_negatives=[sample.hard_negative for sample in samples],
            labels=[sample.label for sample in samples],
        )

    def stream(self, start: int, workers: int = 1, *, processes: bool = False, ahead: int = 4) -> Iterator[Batch]:
        """Yield the batches of steps start, start + 1, … without end, loaded by background workers, or in the caller if `workers` is 0.

        Threads are enough for training on a CPU; worker `processes` keep up with a fast GPU, but need more memory and start-up time.
        """
        batches: Iterable[Batch]
        if workers == 0:
            batches = map(self.batch, count(start))
        elif processes:
            # Without its own generator the DataLoader would advance torch's global one.
            batches = DataLoader(self, None, sampler=count(start), num_workers=workers, prefetch_factor=2, generator=torch.Generator())
        else:
            batches = prefetch(self.batch, start, workers, max(ahead, workers))
        fetch = getattr(self.source, "fetch_shard", None)
        yield from batches if fetch is None else fetch_ahead(batches, replace(self.order), start, fetch)

    def _sample(self, epoch: int, index: int, repeat: int) -> Sample:
        sample = self.source.sample(index, np.random.default_rng([self.seed, epoch, index, repeat]))
        if self.size is None or sample.image.size == (self.size, self.size):
            return sample
        return replace(sample, image=sample.image.resize((self.size, self.size), Image.Resampling.LANCZOS))
