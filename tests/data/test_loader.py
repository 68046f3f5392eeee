"""Batches: a pure function of (seed, step), whatever came before and whoever draws them."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.data import BatchLoader, Sample, ShapesDataset
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


def test_a_batch_does_not_depend_on_history_or_workers():
    source = ShapesDataset(32)
    fresh = {step: BatchLoader(source, 12, 7).batch(step) for step in (9, 3, 20)}
    one = BatchLoader(source, 12, 7)
    for step in (20, 9, 3, 9):
        assert torch.equal(one.batch(step).x, fresh[step].x)
        assert one.batch(step).captions == fresh[step].captions
    before = torch.get_rng_state()
    for workers, processes in ((0, False), (1, False), (3, False), (2, True)):
        streamed = dict(zip(range(3, 24), one.stream(3, workers, processes=processes), strict=False))
        for step in fresh:
            assert torch.equal(streamed[step].x, fresh[step].x)
            assert streamed[step].captions == fresh[step].captions
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_visits_every_index_once_in_another_order():
    batches = BatchLoader(Numbered(10), 4, seed=1)
    row = [int(caption) for step in range(10) for caption in batches.batch(step).captions]  # four epochs, running on across batches
    epochs = [row[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_each_visit_is_drawn_anew():
    batches = BatchLoader(Numbered(5), 5, seed=0)
    draws = {float(batches.batch(epoch).x[i, 1, 0, 0]) for epoch in range(20) for i in range(5)}
    assert len(draws) > 60  # of 100 draws of a byte
    assert not torch.equal(BatchLoader(Numbered(5), 5, seed=1).batch(0).x, batches.batch(0).x)


def test_values_are_in_minus_one_to_one():
    x = BatchLoader(Numbered(256), 256, seed=0).batch(0).x
    assert x.dtype == torch.float32
    assert x.shape == (256, 3, 4, 4)
    red = x[:, 0, 0, 0].sort().values
    torch.testing.assert_close(red, torch.arange(256) / 127.5 - 1)
    assert (x[:, 2] == -1).all()


def test_siblings_are_neighbours_of_one_index_drawn_apart():
    batches = BatchLoader(Numbered(6), 8, seed=2, repeats=4)
    batch = batches.batch(0)
    assert len(set(batch.captions[:4])) == len(set(batch.captions[4:])) == 1
    assert len({float(g) for g in batch.x[:4, 1, 0, 0]}) > 1
    visits = Counter(caption for step in range(3) for caption in batches.batch(step).captions)
    assert set(visits.values()) == {4}


def test_images_of_another_size_are_resized():
    assert BatchLoader(Numbered(4), 2, 0, 8).batch(0).x.shape == (2, 3, 8, 8)


def test_a_batch_can_be_sliced():
    batch = BatchLoader(Numbered(9), 6, 0).batch(0)
    part = batch[2:5]
    assert len(part) == 3
    assert torch.equal(part.x, batch.x[2:5])
    assert part.captions == batch.captions[2:5]


def test_an_error_while_drawing_reaches_the_reader():
    class Broken(Numbered):
        def sample(self, index: int, rng: np.random.Generator) -> Sample:
            raise DaguerreError("image 3 is damaged")

    with pytest.raises(DaguerreError, match="image 3"):
        list(islice(BatchLoader(Broken(4), 2, 0).stream(0), 1))


@pytest.mark.parametrize(
    ("count", "size", "seed", "siblings", "said"),
    [(0, 4, 0, 1, "empty"), (4, 0, 0, 1, "positive multiple"), (4, 6, 0, 4, "positive multiple"), (4, 4, -1, 1, "negative")],
)
def test_impossible_batches_are_refused(count: int, size: int, seed: int, siblings: int, said: str):
    with pytest.raises(DaguerreError, match=said):
        BatchLoader(Numbered(count), size, seed, repeats=siblings)
