"""Batches of caption variants depend only on (seed, step)."""

from itertools import islice

from daguerre.training.datasets.caption_variants import CaptionVariants

CAPTIONS = [f"a {name}" for name in ("cat", "dog", "cow", "owl", "bee")]


def test_batches_are_a_function_of_seed_and_step():
    batches = CaptionVariants(CAPTIONS, 4, 0, fits=lambda text: True)
    assert list(islice(batches.stream(2), 3)) == [batches.batch(step) for step in (2, 3, 4)]
    assert batches.batch(1) != CaptionVariants(CAPTIONS, 4, 1, fits=lambda text: True).batch(1)


def test_each_epoch_has_all_captions_and_other_variants():
    batches = CaptionVariants(CAPTIONS, 5, 0, fits=lambda text: True)
    first, second = (dict(zip(batch.captions, batch.variants, strict=True)) for batch in (batches.batch(0), batches.batch(1)))
    assert sorted(first) == sorted(second) == sorted(CAPTIONS)
    assert first != second


def test_a_variant_that_is_too_long_is_the_caption_itself():
    batch = CaptionVariants(CAPTIONS, 50, 0, fits=lambda text: len(text) <= 5).batch(0)
    assert max(map(len, batch.variants)) <= 5
    assert sum(variant == caption for caption, variant in zip(batch.captions, batch.variants, strict=True)) > 25
    assert len(batch[3:7]) == 4
