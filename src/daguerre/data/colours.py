"""Colour words: classify pixels and whole images, and recolour images.

Words follow hue, saturation and value as people use them (a dark orange is brown, a pale red is pink). Ambiguous colours between two words
have none, so that captions name only clear colours.
"""

from functools import cache

import numpy as np
from PIL import Image

# Colours that hue rotation can produce, with their central hue in degrees.
HUES: dict[str, float] = {"red": 0, "orange": 27, "yellow": 51, "green": 120, "blue": 220, "purple": 276, "pink": 328}
# Colours of backgrounds and drawn shapes, uint8 RGB.
PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 38),
    "orange": (249, 135, 22),
    "yellow": (250, 214, 30),
    "green": (52, 168, 60),
    "blue": (46, 100, 230),
    "purple": (142, 62, 204),
    "pink": (244, 128, 190),
    "brown": (125, 76, 38),
    "black": (18, 18, 20),
    "gray": (140, 140, 142),
    "white": (255, 255, 255),
}
COLOUR_CLASSES = ("", *PAINTS, "")  # class names by index; class 0 is no clear colour, the last class is a vivid colour without a word
_UNNAMED = len(COLOUR_CLASSES) - 1
_MIN_ALPHA = 100  # pixels with less alpha are ignored
_MIN_SHARE = 0.5  # of the opaque pixels that must have the colour of an image
_MAX_RIVAL = 0.35  # of that share, at most, for any other hue


def classify(rgb: np.ndarray) -> np.ndarray:
    """Colour classes uint8 (*), indices into COLOUR_CLASSES, of RGB pixels uint8 (*, 3)."""
    r, g, b = (rgb[..., i].astype(np.float32) / 255 for i in range(3))
    value, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    chroma = np.maximum(value - low, 1e-6)
    saturation = np.where(value > 0, (value - low) / np.maximum(value, 1e-6), 0)
    sector = np.where(value == r, ((g - b) / chroma) % 6, np.where(value == g, (b - r) / chroma + 2, (r - g) / chroma + 4))
    hue = 60 * sector
    vivid = (saturation > 0.3) & (value > 0.25)
    warm = (hue >= 10) & (hue < 45)
    rules = {
        "black": value < 0.27,
        "white": (saturation < 0.1) & (value > 0.92),
        "gray": (saturation < 0.17) & (value > 0.33) & (value < 0.85),
        "brown": (warm & (value < 0.66) & (saturation > 0.25)) | (warm & (value < 0.72) & (saturation > 0.3) & (saturation < 0.65)),
        "pink": ((hue >= 308) & (hue < 344) & (saturation > 0.22) & (value > 0.72))
        | (((hue >= 344) | (hue < 12)) & (saturation > 0.15) & (saturation < 0.5) & (value > 0.85)),
        "red": vivid & ((hue >= 347) | (hue < 13)) & (saturation > 0.6) & (value > 0.55),
        "orange": vivid & (hue >= 17) & (hue < 41) & (saturation > 0.6) & (value > 0.75),
        "yellow": vivid & (hue >= 43) & (hue < 66) & (value > 0.75),
        "green": vivid & (hue >= 75) & (hue < 165),
        "blue": vivid & (hue >= 196) & (hue < 250),
        "purple": vivid & (hue >= 256) & (hue < 305),
    }
    classes = np.zeros(rgb.shape[:-1], dtype=np.uint8)
    for name, holds in rules.items():
        classes[(classes == 0) & holds] = COLOUR_CLASSES.index(name)
    classes[(classes == 0) & vivid] = _UNNAMED
    return classes


def shade(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """A random variation in brightness of a colour of PAINTS, uint8 RGB; white stays white."""
    factor = 1.0 if colour == "white" else rng.uniform(0.92, 1.06)
    r, g, b = (min(round(channel * factor), 255) for channel in PAINTS[colour])
    return r, g, b


@cache
def _class_table() -> np.ndarray:
    """`classify` for every RGB colour with five bits per channel, uint8 (32768,)."""
    levels = np.arange(32, dtype=np.uint8) * 8 + 4
    return classify(np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)).reshape(-1)


def colour_shares(rgba: Image.Image) -> np.ndarray:
    """Fraction of the opaque pixels of an RGBA image in each class of COLOUR_CLASSES, float (len(COLOUR_CLASSES),)."""
    pixels = np.asarray(rgba).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > _MIN_ALPHA] >> 3
    index = (pixels[:, 0].astype(np.intp) << 10) | (pixels[:, 1].astype(np.intp) << 5) | pixels[:, 2]
    return np.bincount(_class_table()[index], minlength=len(COLOUR_CLASSES)) / max(len(pixels), 1)


def colour_of(rgba: Image.Image) -> str | None:
    """The colour word of an RGBA image, or None if no single colour dominates."""
    shares = colour_shares(rgba)
    first = int(shares[1:_UNNAMED].argmax()) + 1
    rivals = [i for i in (*map(COLOUR_CLASSES.index, HUES), _UNNAMED) if i != first]
    if shares[first] < _MIN_SHARE or shares[rivals].max() > _MAX_RIVAL * shares[first]:
        return None
    return COLOUR_CLASSES[first]


def main_hue(rgba: Image.Image) -> float | None:
    """The circular mean hue in degrees of the vivid pixels near the most common hue; None if fewer than 40 % of the pixels are vivid."""
    hsv = np.asarray(rgba.convert("RGB").convert("HSV")).reshape(-1, 3)
    opaque = np.asarray(rgba.getchannel("A")).reshape(-1) > _MIN_ALPHA
    vivid = opaque & (hsv[:, 1] > 70) & (hsv[:, 2] > 80)
    if vivid.sum() < 0.4 * opaque.sum() or not vivid.any():
        return None
    counts = np.bincount(hsv[vivid, 0], minlength=256).astype(np.float64)
    near = np.minimum(np.arange(256), 256 - np.arange(256)) <= 14  # ± 20°
    around = np.real(np.fft.ifft(np.fft.fft(counts) * np.fft.fft(near.astype(np.float64))))
    centre = int(around.argmax())
    offset = (np.arange(256) - centre + 128) % 256 - 128
    weights = counts * (abs(offset) <= 14)
    return float((centre + (weights * offset).sum() / weights.sum()) * 360 / 256 % 360)


def hue_rotation(source: float, target: float) -> list[int]:
    """A lookup table for Pillow's 8-bit hue channel that rotates hues near `source` to `target` (degrees).

    Hues within 40° rotate fully, those beyond 75° do not change, so that the leaf of an apple stays green when the apple turns blue.
    """
    hues = np.arange(256)
    distance = abs((hues * 360 / 256 - source + 180) % 360 - 180)
    weight = np.clip((75 - distance) / 35, 0, 1)
    rotation = ((target - source + 180) % 360 - 180) * 256 / 360
    return [int(h) for h in np.rint(hues + weight * rotation) % 256]


def rotate_hues(rgba: Image.Image, table: list[int]) -> Image.Image:
    """Apply a hue table to an RGBA image; value, saturation and alpha do not change."""
    hue, saturation, value = rgba.convert("RGB").convert("HSV").split()
    rotated = Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")
    rotated.putalpha(rgba.getchannel("A"))
    return rotated
