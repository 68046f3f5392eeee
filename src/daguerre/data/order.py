"""Which samples each batch has: a pure function of (seed, step).

Position p of the endless sequence of samples belongs to epoch p // N. Each epoch has its own permutation of the N indices. If the samples
are in shards, an epoch visits the shards in its own order, and shuffles the samples of SHUFFLED_SHARDS successive ones together, so that
few files are read at a time.

With aspect-ratio buckets each bucket of n images has such a sequence, and a batch takes B samples of one of them. The epochs up to epoch e
have ⌊(e + 1) n / B⌋ batches of this bucket in all, those of each epoch in an order of the seed. So nothing is dropped or repeated: the
samples that do not fill a batch are the first of the bucket's next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

SHUFFLED_SHARDS = 8


@lru_cache(maxsize=64)  # of different lengths
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def epoch_index(seed: int, position: int, length: int) -> int:
    """The sample at a position of the endless sequence: each epoch visits all indices 0 … length − 1 once, in its own order."""
    return int(_permutation(seed, position // length, length)[position % length])


def shard_order(seed: int, epoch: int, shards: np.ndarray) -> np.ndarray:
    """The order of an epoch of N samples. shards: the number of the shard of each sample, (N,), equal ones adjacent."""
    rng = np.random.default_rng([seed, epoch])
    starts = np.flatnonzero(np.diff(shards, prepend=shards[0] - 1))
    parts = np.split(np.arange(len(shards)), starts[1:])
    order = rng.permutation(len(parts))
    blocks = [order[first : first + SHUFFLED_SHARDS] for first in range(0, len(order), SHUFFLED_SHARDS)]
    return np.concatenate([rng.permutation(np.concatenate([parts[shard] for shard in block])) for block in blocks])


@dataclass(frozen=True)
class BatchOrder:
    """Which samples each batch has.

    buckets: the bucket of each sample, if the samples of a batch must have the same one. shards: the number of the shard of each sample,
    equal ones adjacent, if they are in shards.
    """

    length: int
    batch_size: int
    seed: int
    buckets: Sequence[int] | np.ndarray = ()
    shards: np.ndarray | None = None
    _latest: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of the samples of one step."""
        bucket, turn = self._turn(step)
        members = self._members[bucket]
        positions = range(turn * self.batch_size, (turn + 1) * self.batch_size)
        return [(p // len(members), int(members[self._order(bucket, p // len(members))[p % len(members)]])) for p in positions]

    @cached_property
    def _members(self) -> Sequence[Sequence[int] | np.ndarray]:
        """The samples of each bucket, in their order."""
        buckets = np.asarray(self.buckets)
        numbers = np.unique(buckets)
        return [range(self.length)] if len(numbers) < 2 else [np.flatnonzero(buckets == number) for number in numbers]

    @cached_property
    def _counts(self) -> np.ndarray:
        """The number of samples of each bucket."""
        return np.array([len(members) for members in self._members])

    def _turn(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many batches it had before."""
        if len(self._members) == 1:
            return 0, step
        epoch = step * self.batch_size // self.length  # or a later one, because an unfinished batch waits for the next epoch
        while self._batches_before(epoch + 1).sum() <= step:
            epoch += 1
        before = self._batches_before(epoch)
        buckets = np.repeat(np.arange(len(before)), self._batches_before(epoch + 1) - before)
        buckets = buckets[_permutation(self.seed, epoch, len(buckets))]
        position = step - int(before.sum())
        bucket = int(buckets[position])
        return bucket, int(before[bucket]) + int((buckets[:position] == bucket).sum())

    def _batches_before(self, epoch: int) -> np.ndarray:
        """The number of batches that each bucket has before an epoch."""
        return epoch * self._counts // self.batch_size

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        """The order of the samples of a bucket in an epoch. Only the latest one of each bucket is kept."""
        known, order = self._latest.get(bucket, (-1, np.empty(0)))
        if known != epoch:
            members = self._members[bucket]
            if self.shards is None:
                order = np.random.default_rng([self.seed, epoch]).permutation(len(members))
            else:
                order = shard_order(self.seed, epoch, self.shards[members] if isinstance(members, np.ndarray) else self.shards)
            self._latest[bucket] = epoch, order
        return order
