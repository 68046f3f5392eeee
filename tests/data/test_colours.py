"""Colour words and recolouring, checked with the HSV conversion of the standard library."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from daguerre.data.colours import COLOUR_CLASSES, HUES, PAINTS, classify, colour_of, hue_rotation, main_hue, rotate_hues, shade


def flat(rgb: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGBA", (8, 8), (*rgb, 255))


@pytest.mark.parametrize("name", PAINTS)
def test_every_shade_is_classified_as_its_colour(name: str):
    rng = np.random.default_rng(0)
    assert {colour_of(flat(shade(rng, name))) for _ in range(100)} == {name}


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((255, 0, 0), "red"),
        ((0, 0, 255), "blue"),
        ((255, 255, 0), "yellow"),
        ((101, 67, 33), "brown"),  # a dark orange
        ((255, 192, 203), "pink"),  # a pale red
        ((128, 128, 0), ""),  # olive: between yellow and green
        ((0, 255, 255), ""),  # between green and blue
        ((255, 203, 164), ""),  # peach
    ],
)
def test_classify_known_colours(rgb: tuple[int, int, int], word: str):
    assert COLOUR_CLASSES[int(classify(np.array([rgb], dtype=np.uint8))[0])] == word


def test_image_with_two_equal_colours_has_no_colour():
    image = flat(PAINTS["red"])
    image.paste((*PAINTS["blue"], 255), (0, 0, 8, 4))
    assert colour_of(image) is None
    image.paste((0, 0, 0, 0), (0, 0, 8, 4))  # transparent pixels are ignored
    assert colour_of(image) == "red"


@pytest.mark.parametrize("target", HUES)
def test_hue_rotation_moves_the_source_hue_and_keeps_the_opposite_one(target: str):
    image = flat((224, 30, 30))
    image.paste((20, 190, 190, 255), (0, 0, 8, 2))  # the opposite hue, a quarter of the image
    source = main_hue(image)
    assert source is not None
    assert min(source, 360 - source) < 2
    rotated = rotate_hues(image, hue_rotation(source, HUES[target]))
    r, g, b, alpha = (int(v) for v in np.asarray(rotated)[6, 4])
    hue, saturation, value = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
    assert abs((hue * 360 - HUES[target] + 180) % 360 - 180) < 3
    assert (saturation, value) == pytest.approx((1 - 30 / 224, 224 / 255), abs=0.02)
    assert alpha == 255
    assert np.abs(np.asarray(rotated)[0, 4].astype(int) - (20, 190, 190, 255)).max() <= 3


def test_gray_image_has_no_main_hue():
    assert main_hue(flat((120, 120, 120))) is None
    assert main_hue(Image.new("RGBA", (4, 4))) is None
