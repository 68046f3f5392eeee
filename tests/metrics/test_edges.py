"""The edge F1 against its definition."""

import pytest
from PIL import Image, ImageDraw

from daguerre.metrics.edges import edge_f1


def line(x: int, length: int = 32) -> Image.Image:
    image = Image.new("RGB", (32, 32))
    ImageDraw.Draw(image).line((x, 0, x, length - 1), fill="white")
    return image


def test_the_score_counts_edges_within_the_tolerance():
    assert edge_f1(line(10), line(10)) == 1
    assert edge_f1(line(10), line(12)) == 1
    assert edge_f1(line(10), line(13)) == 0
    assert edge_f1(line(10), line(13), tolerance=3) == 1
    # All found pixels are right (P = 1), and those of the map up to 2 pixels below the end are found: R = 18/32.
    assert edge_f1(line(10, 16), line(10)) == pytest.approx(2 * 18 / 32 / (1 + 18 / 32))


def test_empty_maps():
    empty = Image.new("L", (32, 32))
    assert edge_f1(empty, empty) == 1
    assert edge_f1(empty, line(3)) == edge_f1(line(3), empty) == 0
