"""Caption variants say the same as the caption, and depend only on it and the generator."""

import numpy as np
import pytest

from benchmarks.caption_variants import VARIANTS
from daguerre.data import EmojiDataset, EmojiMix
from daguerre.data.caption_variants import PHRASES, UNCHANGED, vary_caption, without_style
from daguerre.weights.vocabulary import words_in

ADDED = {word for phrase in PHRASES for word in words_in(phrase)} | {"a", "an", "the"}


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return EmojiDataset(64, mix=EmojiMix(recoloured=0)).captions(2000, seed=1)


@pytest.fixture(scope="module")
def variants(captions: list[str]) -> list[str]:
    return [vary_caption(np.random.default_rng([0, i]), caption) for i, caption in enumerate(captions)]


def test_variants_are_a_function_of_caption_and_generator(captions, variants):
    assert variants == [vary_caption(np.random.default_rng([0, i]), caption) for i, caption in enumerate(captions)]
    assert variants != [vary_caption(np.random.default_rng([1, i]), caption) for i, caption in enumerate(captions)]
    assert vary_caption(np.random.default_rng(0), "") == ""


def test_a_variant_keeps_the_words_of_the_content_in_their_order_and_adds_no_other_content(captions, variants):
    contents = [words_in(without_style(caption)) for caption in captions]
    known = {word for content in contents for word in content} - ADDED
    for content, variant in zip(contents, variants, strict=True):
        wanted = [word for word in content if word not in ("a", "an", "the")]
        remaining = iter(words_in(variant))
        assert all(word in remaining for word in wanted), (wanted, variant)
        assert known.isdisjoint({*words_in(variant)} - {*content}), (content, variant)


def test_at_least_the_stated_share_stays_as_it_is(captions, variants):
    same = sum(caption == variant for caption, variant in zip(captions, variants, strict=True))
    deviation = (UNCHANGED * (1 - UNCHANGED) / len(captions)) ** 0.5
    assert same / len(captions) > UNCHANGED - 4 * deviation


def test_every_kind_of_change_occurs(variants):
    assert {word for variant in variants for word in words_in(variant)} >= ADDED
    assert any(variant.isupper() for variant in variants)
    for end in (".", "!", "?", ",", '"', "'"):
        assert any(variant.endswith(end) for variant in variants), end


def test_made_up_words_stand_at_any_position(captions):
    known = {word for caption in captions for word in words_in(caption)} | ADDED
    positions = set()
    for i in range(400):
        words = words_in(vary_caption(np.random.default_rng([2, i]), "a red apple"))
        positions |= {position / len(words) for position, word in enumerate(words) if word not in known}
    assert min(positions) == 0
    assert max(positions) >= 0.75


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ("a picture of a red apple", "a red apple"),
        ("emoji of cherries", "cherries"),
        ("red apple emoji", "red apple"),
        ("a picture frame", "a picture frame"),
        ("a drawing of a cat on a green background", "a cat on a green background"),
    ],
)
def test_a_style_word_is_removed_before_another_one_is_added(caption: str, plain: str):
    assert without_style(caption) == plain


def test_the_evaluated_wordings_differ_and_some_are_new():
    assert len({(variant.template, variant.case) for variant in VARIANTS}) == len(VARIANTS) == 40
    new = [variant for variant in VARIANTS if not variant.trained]
    assert len(new) >= 8
    for variant in new:
        words = set(words_in(variant("x"))) - {"x"}
        assert not words or words - ADDED, variant.name
    assert [variant("an owl and a cat") for variant in VARIANTS if "{short}" in variant.template] == ["owl and cat", "Owl and cat."]
