"""Colour words against the pixels, read here by another road: the standard library's HSV and a median."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from daguerre.data.colours import HUES, NAMES, PAINTS, classify, colour_of, hue_rotation, main_hue, rotate_hues, shade


def flat(rgb: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGBA", (8, 8), (*rgb, 255))


@pytest.mark.parametrize("name", PAINTS)
def test_every_shade_of_a_paint_deserves_its_word(name: str):
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
        ((128, 128, 0), ""),  # olive: nobody's yellow, nobody's green
        ((0, 255, 255), ""),  # between green and blue
        ((255, 203, 164), ""),  # peach
    ],
)
def test_words_follow_people_not_hue_alone(rgb: tuple[int, int, int], word: str):
    assert NAMES[int(classify(np.array([rgb], dtype=np.uint8))[0])] == word


def test_two_colours_of_like_size_have_no_name():
    half = flat(PAINTS["red"])
    half.paste((*PAINTS["blue"], 255), (0, 0, 8, 4))
    assert colour_of(half) is None
    half.paste((0, 0, 0, 0), (0, 0, 8, 4))  # what is clear does not count
    assert colour_of(half) == "red"


@pytest.mark.parametrize("target", HUES)
def test_a_turn_moves_its_hue_to_the_target_and_leaves_the_opposite_one(target: str):
    image = flat((224, 30, 30))
    image.paste((20, 190, 190, 255), (0, 0, 8, 2))  # the opposite hue, a quarter of the image
    source = main_hue(image)
    assert source is not None
    assert min(source, 360 - source) < 2
    turned = rotate_hues(image, hue_rotation(source, HUES[target]))
    r, g, b, alpha = (int(v) for v in np.asarray(turned)[6, 4])
    hue, saturation, value = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
    assert abs((hue * 360 - HUES[target] + 180) % 360 - 180) < 3
    assert (saturation, value) == pytest.approx((1 - 30 / 224, 224 / 255), abs=0.02)
    assert alpha == 255
    assert np.abs(np.asarray(turned)[0, 4].astype(int) - (20, 190, 190, 255)).max() <= 3


def test_a_gray_image_has_no_main_hue():
    assert main_hue(flat((120, 120, 120))) is None
    assert main_hue(Image.new("RGBA", (4, 4))) is None
