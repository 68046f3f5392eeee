"""Condition maps of images whose edges are known."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from daguerre.errors import DaguerreError
from daguerre.pipelines.images.preprocessors import PREPROCESSORS, canny, colours, grey, lines, preprocess, scribble


def square(low: int = 0, high: int = 255) -> Image.Image:
    image = Image.new("RGB", (64, 48), (low,) * 3)
    ImageDraw.Draw(image).rectangle((16, 12, 47, 35), (high,) * 3)
    return image


def bright(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[..., 0] > 127


def test_canny_finds_the_outline_of_a_square_and_nothing_else():
    edges = bright(canny(square()))
    outline = np.zeros_like(edges)
    outline[11:37, 15:49] = True
    outline[14:34, 18:46] = False
    assert not edges[~outline].any()
    assert (edges.any(axis=0)[16:48]).all()
    assert edges[:, 20:44].sum() == 2 * 24  # one pixel thin above and below
    assert edges[16:32].sum() == 2 * 16


def step(low: int, high: int) -> Image.Image:
    """Dark above, bright below."""
    image = Image.new("RGB", (64, 48), (low,) * 3)
    image.paste((high,) * 3, (0, 24, 64, 48))
    return image


def test_canny_needs_a_strong_edge_somewhere():
    assert not bright(canny(step(100, 120))).any()  # a gradient of 80, below both thresholds
    assert not bright(canny(step(100, 140))).any()  # 160: only above the lower one
    assert bright(canny(step(100, 160))).sum() == 64  # 240
    partly = step(100, 140)
    partly.paste((180,) * 3, (0, 24, 16, 48))  # a strong part of the edge
    assert bright(canny(partly))[:, 24:].sum() == 40  # the weak rest is connected to it


def test_scribble_and_lines_show_what_is_drawn():
    drawing = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(drawing).line((4, 16, 28, 16), "red", 2)
    assert np.array_equal(bright(scribble(drawing)), np.asarray(drawing)[..., 1] < 127)
    inked = np.asarray(lines(drawing))[..., 0]
    assert inked[2, 2] == 255
    assert inked[16, 16] < 128


def test_colours_are_means():
    halves = Image.new("RGB", (128, 64), "black")
    halves.paste((200, 100, 50), (64, 0, 128, 64))
    assert np.array_equal(np.asarray(colours(halves)), np.asarray(halves))
    assert len(set(map(tuple, np.asarray(grey(halves)).reshape(-1, 3)))) == 2


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_every_map_has_the_size_of_the_image(name: str):
    result = preprocess(square(), name)
    assert (result.size, result.mode) == ((64, 48), "RGB")
    assert preprocess(Image.new("L", (1, 1)), name).size == (1, 1)


def test_an_unknown_preprocessor_names_the_nearest():
    with pytest.raises(DaguerreError, match="Did you mean 'canny'"):
        preprocess(square(), "cany")
