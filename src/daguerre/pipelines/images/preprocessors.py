"""Condition maps for ControlNets, computed from an image without a model.

    canny     edges, white on black (Canny 1986), with the thresholds 100 and 200
    lines     dark lines on white, as a drawing: where the image is darker than its surroundings
    softedge  the brightness gradient, smooth and white on black
    scribble  thick white strokes on black: the dark parts of a drawing
    tile      the image itself, in less detail: for tile ControlNets
    grey      without colours: for recolouring
    blur      blurred: for blur ControlNets
    colours   one mean colour for each 64 × 64 pixels

Depth, pose and segmentation maps need models of their own; give them as images.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

from daguerre.errors import DaguerreError, nearest

CANNY_LOW, CANNY_HIGH = 100, 200  # of the gradient |dx| + |dy| of 8-bit grey
SCRIBBLE_BELOW = 127  # of the darkest channel: what counts as drawn
COLOUR_CELL = 64  # pixels
TILE_FACTOR = 4  # how much less detail the tile map has


def canny(image: Image.Image) -> Image.Image:
    """Edges one pixel thin, white on black: local maxima of the gradient above 200, and those above 100 that touch them."""
    dx, dy = _sobel(image)
    strength = np.abs(dx) + np.abs(dy)
    thin = strength * _is_ridge(strength, dx, dy)
    return _to_map(_grow(thin > CANNY_HIGH, thin > CANNY_LOW))


def lines(image: Image.Image) -> Image.Image:
    """Dark lines on white: how much darker each pixel is than the brightest around it."""
    grey = image.convert("L")
    around = np.asarray(grey.filter(ImageFilter.MaxFilter(7)), dtype=np.float32).clip(1)
    return Image.fromarray((255 * (np.asarray(grey, dtype=np.float32) / around).clip(0, 1)).astype(np.uint8)).convert("RGB")


def softedge(image: Image.Image) -> Image.Image:
    """The magnitude of the gradient, smoothed."""
    dx, dy = _sobel(image.filter(ImageFilter.GaussianBlur(1)))
    magnitude = np.hypot(dx, dy)
    scaled = 255 * (magnitude / max(float(magnitude.max()), 1.0)) ** 0.5
    return Image.fromarray(scaled.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1)).convert("RGB")


def scribble(image: Image.Image) -> Image.Image:
    """White where any channel is dark, as in a drawing on white paper."""
    return _to_map(np.asarray(image.convert("RGB")).min(axis=2) < SCRIBBLE_BELOW)


def tile(image: Image.Image) -> Image.Image:
    """The image with a quarter of its detail."""
    small = image.resize([max(1, side // TILE_FACTOR) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def grey(image: Image.Image) -> Image.Image:
    """The brightness."""
    return image.convert("L").convert("RGB")


def blur(image: Image.Image) -> Image.Image:
    """A Gaussian blur of 9 pixels."""
    return image.filter(ImageFilter.GaussianBlur(9))


def colours(image: Image.Image) -> Image.Image:
    """The mean colour of each cell of the image."""
    cells = image.resize([max(1, round(side / COLOUR_CELL)) for side in image.size], Image.Resampling.BOX)
    return cells.resize(image.size, Image.Resampling.NEAREST)


PREPROCESSORS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "lines": lines,
    "softedge": softedge,
    "scribble": scribble,
    "tile": tile,
    "grey": grey,
    "blur": blur,
    "colours": colours,
}


def preprocess(image: Image.Image, name: str) -> Image.Image:
    """The condition map of an RGB image, of its size. Raises DaguerreError if there is no such preprocessor."""
    if name not in PREPROCESSORS:
        raise DaguerreError(f"There is no preprocessor {name!r}; use one of {', '.join(PREPROCESSORS)}.{nearest(name, PREPROCESSORS)}")
    return PREPROCESSORS[name](image.convert("RGB"))


def _sobel(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives of the brightness to the right and down, (H, W) float32, with Sobel's 3 × 3 filters."""
    padded = np.pad(np.asarray(image.convert("L"), dtype=np.float32), 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]


def _is_ridge(strength: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Where the gradient is largest among its two neighbours along its direction, which is one of four: (H, W) bool."""
    padded = np.pad(strength, 1)
    height, width = strength.shape
    octant = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(strength.shape, dtype=bool)
    for number, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        behind = padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]
        ridge |= (octant == number) & (strength > behind) & (strength >= ahead)
    return ridge


def _grow(seeds: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed pixels that touch a seed, directly or through others."""
    reached = seeds
    while True:
        padded = np.pad(reached, 1)
        near = np.zeros_like(reached)
        for down in range(3):
            for right in range(3):
                near |= padded[down : down + reached.shape[0], right : right + reached.shape[1]]
        grown = near & allowed
        if np.array_equal(grown, reached):
            return grown
        reached = grown


def _to_map(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
