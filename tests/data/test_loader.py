"""Batches: a pure function of (seed, step), whatever came before and whoever values them."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.data import BatchLoader, Sample, ShapesDataset
from daguerre.data.order import BatchOrder
from daguerre.errors import DaguerreError


class Numbered:
    """A source whose images tell index and draw: red = index, green = a random byte."""

    size, key = 4, "numbered"

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        return Sample(Image.new("RGB", (4, 4), (index, int(rng.integers(256)), 0)), str(index))

    def captions(self, count: int, seed: int) -> list[str]:
        return [str(i % self.count) for i in range(count)]


def test_batches_do_not_depend_on_history_or_workers():
    source = ShapesDataset(32)
    expected = {step: BatchLoader(source, 12, 7).batch(step) for step in (9, 3, 20)}
    one = BatchLoader(source, 12, 7)
    for step in (20, 9, 3, 9):
        assert torch.equal(one.batch(step).x, expected[step].x)
        assert one.batch(step).captions == expected[step].captions
    before = torch.get_rng_state()
    for workers, processes in ((0, False), (1, False), (3, False), (2, True)):
        streamed = dict(zip(range(3, 24), one.stream(3, workers, processes=processes), strict=False))
        for step in expected:
            assert torch.equal(streamed[step].x, expected[step].x)
            assert streamed[step].captions == expected[step].captions
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_is_a_different_permutation():
    batches = BatchLoader(Numbered(10), 4, seed=1)
    sequence = [int(caption) for step in range(10) for caption in batches.batch(step).captions]  # four epochs, running on across batches
    epochs = [sequence[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_each_epoch_uses_different_generators():
    batches = BatchLoader(Numbered(5), 5, seed=0)
    values = {float(batches.batch(epoch).x[i, 1, 0, 0]) for epoch in range(20) for i in range(5)}
    assert len(values) > 60  # of 100 random 8-bit values
    assert not torch.equal(BatchLoader(Numbered(5), 5, seed=1).batch(0).x, batches.batch(0).x)


def test_pixels_are_scaled_to_minus_one_to_one():
    x = BatchLoader(Numbered(256), 256, seed=0).batch(0).x
    assert x.dtype == torch.float32
    assert x.shape == (256, 3, 4, 4)
    red = x[:, 0, 0, 0].sort().values
    torch.testing.assert_close(red, torch.arange(256) / 127.5 - 1)
    assert (x[:, 2] == -1).all()


def test_repeats_are_adjacent_samples_of_one_index():
    batches = BatchLoader(Numbered(6), 8, seed=2, repeats=4)
    batch = batches.batch(0)
    assert len(set(batch.captions[:4])) == len(set(batch.captions[4:])) == 1
    assert len({float(g) for g in batch.x[:4, 1, 0, 0]}) > 1
    visits = Counter(caption for step in range(3) for caption in batches.batch(step).captions)
    assert set(visits.values()) == {4}


def test_images_of_another_size_are_resized():
    assert BatchLoader(Numbered(4), 2, 0, 8).batch(0).x.shape == (2, 3, 8, 8)


def test_batch_slicing():
    batch = BatchLoader(Numbered(9), 6, 0).batch(0)
    part = batch[2:5]
    assert len(part) == 3
    assert torch.equal(part.x, batch.x[2:5])
    assert part.captions == batch.captions[2:5]


def test_errors_of_workers_reach_the_caller():
    class Broken(Numbered):
        def sample(self, index: int, rng: np.random.Generator) -> Sample:
            raise DaguerreError("image 3 is damaged")

    with pytest.raises(DaguerreError, match="image 3"):
        list(islice(BatchLoader(Broken(4), 2, 0).stream(0), 1))


@pytest.mark.parametrize(
    ("count", "size", "seed", "repeats", "message"),
    [(0, 4, 0, 1, "no images"), (4, 0, 0, 1, "positive multiple"), (4, 6, 0, 4, "positive multiple"), (4, 4, -1, 1, "0 or more")],
)
def test_invalid_arguments_raise(count: int, size: int, seed: int, repeats: int, message: str):
    with pytest.raises(DaguerreError, match=message):
        BatchLoader(Numbered(count), size, seed, repeats=repeats)


def test_batches_have_one_bucket_and_use_every_image_equally_often():
    buckets, batch_size = [0] * 7 + [1] * 2 + [2], 4
    order = BatchOrder(len(buckets), batch_size, 5, buckets)
    cycle = [order.batch(step) for step in range(3 * len(buckets))]
    assert all(len({buckets[index] for _, index in batch}) == 1 for batch in cycle)
    assert all(len(batch) == batch_size for batch in cycle)
    for first in range(0, len(cycle), len(buckets)):
        used = Counter(index for batch in cycle[first : first + len(buckets)] for _, index in batch)
        assert used == dict.fromkeys(range(len(buckets)), batch_size)
    assert len({tuple(buckets[batch[0][1]] for batch in cycle[i : i + 10]) for i in (0, 10, 20)}) > 1  # another order in each cycle
    assert len({pair for batch in cycle for pair in batch}) == len(cycle) * batch_size  # no (epoch, image), so no generator, twice


def test_buckets_use_every_image_once_an_epoch_and_all_processes_have_one_shape():
    """Five images a batch, so that after five epochs no bucket has an unfinished batch."""
    buckets, batch_size = [0] * 11 + [1] * 3 + [2] * 1 + [3] * 8, 5
    order = BatchOrder(len(buckets), batch_size, 3, buckets)
    batches = [order.batch(step) for step in range(len(buckets) * 5 // batch_size)]
    assert all({buckets[index] for _, index in batch} == {buckets[batch[0][1]]} for batch in batches)
    assert Counter(index for batch in batches for _, index in batch) == dict.fromkeys(range(len(buckets)), 5)
    for epoch in range(1, 6):  # of a bucket of n images, at most one batch of an epoch waits for the next one
        steps = sum(epoch * buckets.count(bucket) // batch_size for bucket in range(4))
        used = Counter(buckets[index] for batch in batches[:steps] for _, index in batch)
        assert all(0 <= epoch * buckets.count(bucket) - used[bucket] < batch_size for bucket in range(4))
    for step in (22, 7, 13):
        assert BatchOrder(len(buckets), batch_size, 3, buckets).batch(step) == batches[step]


def test_buckets_do_not_depend_on_history_and_one_bucket_changes_nothing():
    buckets = [0, 1] * 5
    later = BatchOrder(10, 3, 1, buckets).batch(23)
    order = BatchOrder(10, 3, 1, buckets)
    assert [order.batch(step) for step in range(24)][23] == later
    for step in range(9):
        assert BatchOrder(10, 4, 2, [7] * 10).batch(step) == BatchOrder(10, 4, 2).batch(step)
