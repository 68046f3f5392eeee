"""A judge of drawn shapes that measures them, so that nobody has to train it: background, colour, number and shape of what is in an image.

An image's background is the median of its border, and what differs from it is drawn. How much of a pixel is drawn, a = (x − b)·(c − b) /
|c − b|² with the drawn colour c and the background b, gives each thing's area and centroid; every kind of shape is laid there with the same
area and centroid, and the overlap Σ min / Σ max tells the kind. An embedding holds four distributions, over colours, shapes, backgrounds
and numbers; a text has ones where it names them. So the cosine of the two counts what agrees.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.data.colours import PAINTS
from daguerre.data.shapes import COLOURS, COUNTS, SHAPES, DrawnShape, ShapesDataset, ShapesScene
from daguerre.errors import DaguerreError

DRAWN = 40  # bytes by which a pixel differs from the background
LEAST = 0.2  # of the largest thing's area: what is smaller is no thing of its own
FINE = 96  # pixels a side that a kind of shape is measured on
BLOCKS = (COLOURS, SHAPES, tuple(PAINTS), (1, *COUNTS))
COLOUR_WIDTH, OVERLAP_WIDTH = 12.0, 0.03  # of the distributions, in bytes and in shares


class ShapesScorer:
    """Embeds images and texts of drawn shapes in one space, as (N, 34) unit vectors."""

    name = "measured shapes"

    def embed_images(self, x: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) in [−1, 1]."""
        pixels = ((x.movedim(1, -1).double() + 1) * 127.5).cpu().numpy()
        return F.normalize(torch.stack([torch.from_numpy(np.concatenate(_seen(image))) for image in pixels]).float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts such as "two red circles on a green background". Raises DaguerreError for one that names no colour and shape."""
        return F.normalize(torch.stack([torch.from_numpy(np.concatenate(_said(text))) for text in texts]).float(), dim=1)


def _said(text: str) -> list[np.ndarray]:
    thing, _, ground = text.partition(" on a")
    words = thing.split()
    colour = next((word for word in words if word in COLOURS), None)
    shape = next((name for name in SHAPES if words[-1].startswith(name)), None)
    if colour is None or shape is None:
        raise DaguerreError(f"{text[:60]!r} names no colour and shape that there are; this judge knows drawn shapes alone.")
    background = next((word for word in ground.split() if word in PAINTS), "white")
    count = next((count for count, word in COUNTS.items() if word in words), 1)
    named = zip(BLOCKS, (colour, shape, background, count), strict=True)
    return [np.array([each == wanted for each in block], float) for block, wanted in named]


def _seen(image: np.ndarray) -> list[np.ndarray]:
    """The four distributions of an image (H, W, 3) in bytes; where nothing is drawn, all but the background's are zero."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    background = np.median(border, axis=0)
    differs = np.abs(image - background).max(axis=2)
    grounds = _near(background, tuple(PAINTS))
    things = list(_things(differs > DRAWN))
    if not things:
        return [np.zeros(len(COLOURS)), np.zeros(len(SHAPES)), grounds, np.zeros(1 + len(COUNTS))]
    drawn = np.logical_or.reduce(things)
    colour = np.median(image[drawn & (differs >= np.median(differs[drawn]))], axis=0)
    towards = colour - background
    amount = ((image - background) @ towards / (towards @ towards)).clip(0, 1)
    overlaps = np.mean([_overlaps(amount * _grown(thing)) for thing in things], axis=0)
    counts = np.array([count == len(things) for count in BLOCKS[3]], float)
    return [_near(colour, COLOURS), _softmax(overlaps / OVERLAP_WIDTH), grounds, counts]


def _things(drawn: np.ndarray) -> Iterator[np.ndarray]:
    """What of (H, W) hangs together, each as (H, W), but for specks."""
    left, found = drawn.copy(), []
    while left.any():
        thing = np.zeros_like(drawn)
        thing[np.unravel_index(left.argmax(), left.shape)] = True
        while (grown := _grown(thing) & drawn).sum() > thing.sum():
            thing = grown
        found.append(thing)
        left &= ~thing
    largest = max((thing.sum() for thing in found), default=0)
    yield from (thing for thing in found if thing.sum() >= max(LEAST * largest, 4))


def _grown(thing: np.ndarray) -> np.ndarray:
    """With all pixels beside it."""
    wide = np.pad(thing, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _overlaps(amount: np.ndarray) -> np.ndarray:
    """How well each kind of shape lies on (H, W): (shapes,) shares."""
    area = amount.sum()
    if area < 1:  # of another colour than the rest, on the background's other side
        return np.zeros(len(SHAPES))
    rows, columns = np.indices(amount.shape) + 0.5
    centre = np.array([(rows * amount).sum(), (columns * amount).sum()]) / area
    found = []
    for shape in SHAPES:
        mask = _mask(shape)
        share, own = mask.mean(), _centre(shape)
        side = np.sqrt(area / share)
        # Where each pixel of the image, at four by four points, lies in the shape's unit square.
        points = [((np.arange(4 * n) + 0.5) / 4 - at) / side + middle for n, at, middle in zip(amount.shape, centre, own, strict=True)]
        inside = [(p >= 0) & (p < 1) for p in points]
        index = [(p * FINE).astype(int).clip(0, FINE - 1) for p in points]
        fine = mask[np.ix_(*index)] * np.outer(*inside)
        laid = fine.reshape(amount.shape[0], 4, amount.shape[1], 4).mean(axis=(1, 3))
        found.append(np.minimum(laid, amount).sum() / np.maximum(laid, amount).sum())
    return np.array(found)


@cache
def _mask(shape: str) -> np.ndarray:
    """A shape in its unit square, (FINE, FINE) in [0, 1]."""
    drawn = DrawnShape(shape, "black", (0, 0, 0), (0, 0, FINE, FINE))
    return ShapesDataset(FINE).masks(ShapesScene("single", (drawn,), ""))[0]


@cache
def _centre(shape: str) -> np.ndarray:
    """Its centroid, (row, column) in the unit square."""
    mask = _mask(shape)
    return (np.indices(mask.shape) + 0.5).reshape(2, -1) @ mask.ravel() / mask.sum() / FINE


def _near(colour: np.ndarray, names: Sequence[str]) -> np.ndarray:
    distance = np.linalg.norm(np.array([PAINTS[name] for name in names]) - colour, axis=1)
    return _softmax(-distance / COLOUR_WIDTH)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()
