"""A scorer for drawn shapes without training: it measures the background, colour, number and kind of the shapes in an image.

The background colour b is the median of the border; pixels that differ from it belong to shapes of colour c. The coverage of a pixel,
a = (x − b)·(c − b) / |c − b|², gives the area and centroid of each shape. Each kind of shape is placed with this area and centroid, and the
overlap Σ min / Σ max determines the kind. An embedding concatenates four distributions, over colours, kinds, backgrounds and counts; the
embedding of a text is one-hot in each. So the cosine counts the properties that agree.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.data.colours import PAINTS
from daguerre.data.shapes import COLOURS, COUNTS, SHAPES, DrawnShape, ShapesDataset, ShapesScene
from daguerre.errors import DaguerreError

MIN_DIFFERENCE = 40  # of a shape pixel from the background, in 8-bit values
MIN_AREA = 0.2  # of the largest shape; smaller components are ignored
TEMPLATE_SIZE = 96  # pixels per side of the template of each kind of shape
PROPERTIES = (COLOURS, SHAPES, tuple(PAINTS), (1, *COUNTS))
COLOUR_TEMPERATURE, OVERLAP_TEMPERATURE = 12.0, 0.03  # of the softmax, in 8-bit values and in overlap


class ShapesScorer:
    """Embeds images and texts of drawn shapes as (N, 34) unit vectors."""

    name = "measured shapes"

    def embed_images(self, x: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) in [−1, 1]."""
        pixels = ((x.movedim(1, -1).double() + 1) * 127.5).cpu().numpy()
        return _unit_vectors(_image_distributions(image) for image in pixels)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts such as "two red circles on a green background". Raises DaguerreError for a text without a known colour and shape."""
        return _unit_vectors(_text_distributions(text) for text in texts)


def _unit_vectors(distributions: Iterable[list[np.ndarray]]) -> Tensor:
    return F.normalize(torch.stack([torch.from_numpy(np.concatenate(each)) for each in distributions]).float(), dim=1)


def _text_distributions(text: str) -> list[np.ndarray]:
    thing, _, ground = text.partition(" on a")
    words = thing.split()
    colour = next((word for word in words if word in COLOURS), None)
    shape = next((name for name in SHAPES if words[-1].startswith(name)), None)
    if colour is None or shape is None:
        raise DaguerreError(f"{text[:60]!r} names no known colour and shape; this scorer supports only drawn shapes.")
    background = next((word for word in ground.split() if word in PAINTS), "white")
    count = next((count for count, word in COUNTS.items() if word in words), 1)
    named = zip(PROPERTIES, (colour, shape, background, count), strict=True)
    return [np.array([value == wanted for value in values], float) for values, wanted in named]


def _image_distributions(image: np.ndarray) -> list[np.ndarray]:
    """The four distributions of an image (H, W, 3) in 0 … 255; without shapes all but the background's are zero."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    background = np.median(border, axis=0)
    differs = np.abs(image - background).max(axis=2)
    backgrounds = _colour_distribution(background, tuple(PAINTS))
    components = list(_components(differs > MIN_DIFFERENCE))
    if not components:
        return [np.zeros(len(COLOURS)), np.zeros(len(SHAPES)), backgrounds, np.zeros(1 + len(COUNTS))]
    shapes = np.logical_or.reduce(components)
    colour = np.median(image[shapes & (differs >= np.median(differs[shapes]))], axis=0)
    direction = colour - background
    coverage = ((image - background) @ direction / (direction @ direction)).clip(0, 1)
    overlaps = np.mean([_overlaps(coverage * _dilate(component)) for component in components], axis=0)
    counts = np.array([count == len(components) for count in PROPERTIES[3]], float)
    return [_colour_distribution(colour, COLOURS), _softmax(overlaps / OVERLAP_TEMPERATURE), backgrounds, counts]


def _components(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The connected components of a mask (H, W), each as a mask, without small specks."""
    remaining, found = mask.copy(), []
    while remaining.any():
        component = np.zeros_like(mask)
        component[np.unravel_index(remaining.argmax(), remaining.shape)] = True
        while (grown := _dilate(component) & mask).sum() > component.sum():
            component = grown
        found.append(component)
        remaining &= ~component
    largest = max((component.sum() for component in found), default=0)
    yield from (component for component in found if component.sum() >= max(MIN_AREA * largest, 4))


def _dilate(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) with all 8 neighbours of its pixels."""
    wide = np.pad(mask, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _overlaps(coverage: np.ndarray) -> np.ndarray:
    """The overlap of each kind of shape with a coverage (H, W): (shapes,) in [0, 1]."""
    area = coverage.sum()
    if area < 1:  # a component of another colour, opposite to the others relative to the background
        return np.zeros(len(SHAPES))
    rows, columns = np.indices(coverage.shape) + 0.5
    centre = np.array([(rows * coverage).sum(), (columns * coverage).sum()]) / area
    overlaps = []
    for shape in SHAPES:
        template = _template(shape)
        side = np.sqrt(area / template.mean())
        # The positions of 4×4 points per image pixel in the unit square of the shape.
        points = [
            ((np.arange(4 * n) + 0.5) / 4 - at) / side + middle
            for n, at, middle in zip(coverage.shape, centre, _centroid(shape), strict=True)
        ]
        inside = [(p >= 0) & (p < 1) for p in points]
        index = [(p * TEMPLATE_SIZE).astype(int).clip(0, TEMPLATE_SIZE - 1) for p in points]
        fine = template[np.ix_(*index)] * np.outer(*inside)
        placed = fine.reshape(coverage.shape[0], 4, coverage.shape[1], 4).mean(axis=(1, 3))
        overlaps.append(np.minimum(placed, coverage).sum() / np.maximum(placed, coverage).sum())
    return np.array(overlaps)


@cache
def _template(shape: str) -> np.ndarray:
    """The mask of a shape in its unit square, (TEMPLATE_SIZE, TEMPLATE_SIZE) in [0, 1]."""
    drawn = DrawnShape(shape, "black", (0, 0, 0), (0, 0, TEMPLATE_SIZE, TEMPLATE_SIZE))
    return ShapesDataset(TEMPLATE_SIZE).masks(ShapesScene("single", (drawn,), ""))[0]


@cache
def _centroid(shape: str) -> np.ndarray:
    """The centroid of a shape, (row, column) in the unit square."""
    mask = _template(shape)
    return (np.indices(mask.shape) + 0.5).reshape(2, -1) @ mask.ravel() / mask.sum() / TEMPLATE_SIZE


def _colour_distribution(colour: np.ndarray, names: Sequence[str]) -> np.ndarray:
    distance = np.linalg.norm(np.array([PAINTS[name] for name in names]) - colour, axis=1)
    return _softmax(-distance / COLOUR_TEMPERATURE)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()
