"""The shapes source: masks are the pixels, words are the places, and what is held out is never said."""

import re
from collections import Counter

import numpy as np
import pytest

from daguerre.data import ShapesDataset, ShapesMix, is_held_out
from daguerre.data.captions import RELATIONS
from daguerre.data.colours import PAINTS
from daguerre.data.shapes import COLOURS, COUNTS, SHAPES, SIZES, ShapesScene
from daguerre.errors import DaguerreError


@pytest.fixture(scope="module")
def source() -> ShapesDataset:
    return ShapesDataset(64)


def scenes(source: ShapesDataset, count: int) -> list[ShapesScene]:
    return [source.scene(i % len(source), np.random.default_rng(i)) for i in range(count)]


def test_image_is_composed_of_its_masks(source: ShapesDataset):
    """image = Σ paint·mask + (1 − Σ mask)·background, to the rounding of 8 bits; masks do not overlap and lie in their boxes."""
    for scene in scenes(source, 300):
        masks = source.masks(scene)
        cover = masks.sum(0)
        assert cover.max() <= 1
        expected = (1 - cover)[..., None] * np.array(scene.paint)
        for mask, drawn in zip(masks, scene.shapes, strict=True):
            expected += mask[..., None] * np.array(drawn.paint)
            rows, columns = np.nonzero(mask)
            left, top, right, bottom = drawn.box
            assert left <= columns.min()
            assert columns.max() < right
            assert top <= rows.min()
            assert rows.max() < bottom
            assert columns.max() - columns.min() + 1 >= 0.7 * (right - left) - 1
        assert np.abs(np.asarray(source.render(scene)) - expected).max() <= 1


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi / 4),
        ("ring", np.pi / 4 * (1 - 0.52**2)),
        ("square", 0.88**2),
        ("triangle", 0.89 / 2),
        ("diamond", 0.76 / 2),
        ("hexagon", 3 * np.sqrt(3) / 8),
        ("cross", 5 / 9),
    ],
)
def test_mask_areas_match_geometry(source: ShapesDataset, shape: str, area: float):
    drawn = [
        s
        for s in scenes(source, 2000)
        if s.kind == "single" and s.shapes[0].shape == shape and s.shapes[0].box[2] - s.shapes[0].box[0] > 40
    ]
    assert drawn
    for scene in drawn[:5]:
        left, _, right, _ = scene.shapes[0].box
        assert source.masks(scene).sum() / (right - left) ** 2 == pytest.approx(area, rel=0.04)


def test_edges_are_smooth(source: ShapesDataset):
    mask = source.masks(
        next(s for s in scenes(source, 200) if s.shapes[0].shape == "circle" and s.shapes[0].box[2] - s.shapes[0].box[0] > 24)
    )[0]
    assert len(np.unique(mask)) > 8


def test_captions_match_the_scenes(source: ShapesDataset):
    seen = Counter()
    for scene in scenes(source, 1500):
        masks = source.masks(scene)
        centres = [np.average(np.indices(mask.shape), axis=(1, 2), weights=mask)[::-1] / 63 for mask in masks]
        (x, y), first = centres[0], scene.shapes[0]
        assert f"{first.colour} {first.shape}" in scene.caption
        assert (" background" in scene.caption) == (f" {scene.background} background" in scene.caption)
        assert scene.background == "white" or f" {scene.background} background" in scene.caption
        assert abs(np.array(scene.paint) - PAINTS[scene.background]).max() < 24
        if scene.kind == "pair":
            gap = centres[1] - centres[0]
            offset = {"left": gap[0], "right": -gap[0], "above": gap[1], "below": -gap[1]}
            assert offset[str(scene.relation)] > 0.15, scene.caption
            assert any(f" {word} " in scene.caption for word in RELATIONS[str(scene.relation)])
            seen["pair"] += 1
        if scene.kind == "count":
            assert f"{COUNTS[len(masks)]} " in scene.caption
            seen[len(masks)] += 1
        if scene.position:
            assert scene.position in scene.caption
            for word, holds in {"left": x < 0.38, "right": x > 0.62, "top": y < 0.38, "bottom": y > 0.62}.items():
                assert (word in scene.position) == holds, scene.caption
            seen["position"] += 1
        for size, (low, high) in SIZES.items():
            if f"{size} " in scene.caption:
                assert low * 64 - 1 <= first.box[2] - first.box[0] <= high * 64 + 1
                seen[size] += 1
    assert min(seen[key] for key in ("pair", "position", *COUNTS, *SIZES)) > 30


def test_training_captions_have_no_held_out_combination(source: ShapesDataset):
    """Parses only the captions."""
    name = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b")
    count = re.compile(rf"\b({'|'.join(COUNTS.values())}) \w+ ({'|'.join(SHAPES)})e?s\b")
    counts_by_kind = Counter()
    for caption in source.captions(20_000, seed=1):
        named = name.findall(caption)
        assert 1 <= len(named) <= 2, caption
        assert not any(is_held_out("shape colour", *pair) for pair in named), caption
        if ground := re.search(r"(\w+) background", caption):
            assert not any(is_held_out("shape background", shape, ground[1]) for _, shape in named), caption
            counts_by_kind["background"] += 1
        if counted := count.search(caption):
            assert not is_held_out("shape count", *counted.groups()), caption
            counts_by_kind["count"] += 1
        if len(named) == 2:
            assert not is_held_out("shape pair", *sorted(shape for _, shape in named)), caption
            counts_by_kind["pair"] += 1
    assert min(counts_by_kind.values()) > 2000


def test_every_kind_has_held_out_combinations():
    assert 0 < sum(is_held_out("shape colour", c, s) for c in COLOURS for s in SHAPES) < 20
    assert 0 < sum(is_held_out("shape background", s, c) for c in PAINTS for s in SHAPES) < 25
    assert 0 < sum(is_held_out("shape count", c, s) for c in COUNTS.values() for s in SHAPES) < 8
    assert 0 < sum(is_held_out("shape pair", a, b) for a in SHAPES for b in SHAPES if a <= b) < 12
    assert len(ShapesDataset(64, split="all")) == len(COLOURS) * len(SHAPES)


@pytest.mark.parametrize("size", [16, 17, 19, 23])
def test_pairs_do_not_overlap_in_small_images(size: int):
    small = ShapesDataset(size, mix=ShapesMix(count=0, pair=1))
    rng = np.random.default_rng(0)
    for scene in (small.scene(i, rng) for i in range(len(small))):
        assert small.masks(scene).sum(axis=0).max() <= 1 + 1e-6  # no overlap
        assert all(0 <= edge <= size for drawn in scene.shapes for edge in drawn.box)


def test_invalid_settings_raise():
    with pytest.raises(DaguerreError, match="16 pixels or more"):
        ShapesDataset(4)
    with pytest.raises(DaguerreError, match="at most 1"):
        ShapesMix(count=0.9, pair=0.9)
