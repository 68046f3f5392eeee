"""The shapes dataset: flat drawn shapes with captions of colour, shape, size, position, count, background and relation.

The exact position of every shape is known: `masks` gives the coverage from which the image is composed,
image = paint·mask + (1 − mask)·background, drawn four times larger and averaged. Shapes never overlap.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageDraw

from daguerre.data.captions import RELATIONS, article, on_background, pick, plural, relation_phrase
from daguerre.data.colours import PAINTS, shade
from daguerre.data.dataset import Sample, Split, is_held_out, sample_captions
from daguerre.errors import DaguerreError

_VERSION = 1  # increase it when the same (index, rng) gives another sample
_SUPERSAMPLING = 4
COLOURS = tuple(name for name in PAINTS if name != "white")
COUNTS = {2: "two", 3: "three", 4: "four"}
SIZES = {"small": (0.18, 0.26), "medium": (0.34, 0.44), "large": (0.6, 0.78)}  # sides as fractions of the image side
POSITIONS = {
    "in the top left corner": (0, 0),
    "at the top": (0.5, 0),
    "in the top right corner": (1, 0),
    "on the left": (0, 0.5),
    "in the middle": (0.5, 0.5),
    "on the right": (1, 0.5),
    "in the bottom left corner": (0, 1),
    "at the bottom": (0.5, 1),
    "in the bottom right corner": (1, 1),
}  # fractions of the free space to the left of the shape and above it
Polygon = Sequence[tuple[float, float]]


def _regular(corners: int, inner: float = 1.0) -> Polygon:
    """A regular polygon in the unit square with a corner at the top; `inner` < 1 gives a star with that inner radius."""
    steps = corners if inner == 1.0 else 2 * corners
    radii = [1.0 if inner == 1.0 or i % 2 == 0 else inner for i in range(steps)]
    points = [(r * math.sin(2 * math.pi * i / steps), -r * math.cos(2 * math.pi * i / steps)) for i, r in enumerate(radii)]
    return [(0.5 + x / 2, 0.5 + y / 2) for x, y in points]


def _heart() -> Polygon:
    """16 sin³t against 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t, scaled to the unit square."""
    angles = [2 * math.pi * i / 60 for i in range(60)]
    x = [16 * math.sin(t) ** 3 for t in angles]
    y = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) for t in angles]
    return [((a + 16) / 32, (b - min(y)) / (max(y) - min(y))) for a, b in zip(x, y, strict=True)]


POLYGONS: dict[str, Polygon] = {
    "square": ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)),
    "triangle": ((0.5, 0.04), (1.0, 0.93), (0.0, 0.93)),
    "diamond": ((0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)),
    "star": _regular(5, 0.42),
    "hexagon": _regular(6),
    "heart": _heart(),
    "cross": tuple(
        (x / 3, y / 3) for x, y in ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1))
    ),
}
SHAPES = ("circle", "ring", *POLYGONS)


@dataclass(frozen=True)
class ShapesMix:
    """Probabilities of the kinds of scene and of naming a property; the remaining scenes have one shape."""

    count: float = 0.2
    pair: float = 0.3
    background: float = 0.35  # a coloured background, of all scenes
    size: float = 0.4  # naming the size, of the single shapes
    position: float = 0.4  # naming the position, of the single shapes

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or max(self.count + self.pair, *asdict(self).values()) > 1:
            raise DaguerreError(
                f"{self} is not a valid mixture: probabilities must be in [0, 1] and those of the kinds must sum to at most 1."
            )


@dataclass(frozen=True)
class DrawnShape:
    """One shape with its box (left, top, right, bottom) in pixels."""

    shape: str
    colour: str
    paint: tuple[int, int, int]
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ShapesScene:
    """The shapes of an image and its caption. `kind` is "single", "count" or "pair"."""

    kind: str
    shapes: tuple[DrawnShape, ...]
    caption: str
    background: str = "white"
    paint: tuple[int, int, int] = PAINTS["white"]
    position: str | None = None
    relation: str | None = None  # of a pair: the position of the first relative to the second


class ShapesDataset:
    """Drawn shapes with captions; image side `size` pixels; the index selects colour and shape. "train" never shows a held-out combination.

    Held out are one in ten of each: (colour, shape), (shape, background), (count, shape), (shape, shape).
    """

    rendered = True

    def __init__(self, size: int = 64, split: Split = "train", mix: ShapesMix = ShapesMix()):
        """Raises DaguerreError for sizes under 16."""
        if size < 16:
            raise DaguerreError(f"size is {size}; shapes need 16 pixels or more to be recognisable.")
        self.size, self.split, self.mix = size, split, mix
        self.things = [(colour, shape) for shape in SHAPES for colour in COLOURS if self.allowed("shape colour", colour, shape)]

    @property
    def key(self) -> str:
        return json.dumps({"shapes": _VERSION, "size": self.size, "split": self.split, **asdict(self.mix)}, sort_keys=True)

    def __len__(self) -> int:
        return len(self.things)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        scene = self.scene(index, rng)
        return Sample(self.render(scene), scene.caption)

    def captions(self, count: int, seed: int) -> list[str]:
        return sample_captions(lambda index, rng: self.scene(index, rng).caption, len(self), count, seed)

    def allowed(self, kind: str, *parts: str) -> bool:
        """Whether this split contains a combination."""
        return self.split == "all" or not is_held_out(kind, *parts)

    def scene(self, index: int, rng: np.random.Generator) -> ShapesScene:
        """A scene whose first shape is `index`, of a random kind."""
        colour, shape = self.things[index]
        chance = rng.random()
        if chance < self.mix.count:
            return self._count(colour, shape, rng)
        if chance < self.mix.count + self.mix.pair:
            return self._pair(colour, shape, rng)
        return self._single(colour, shape, rng)

    def _single(self, colour: str, shape: str, rng: np.random.Generator) -> ShapesScene:
        size = pick(rng, list(SIZES))
        position = pick(rng, list(POSITIONS)) if size != "large" and rng.random() < self.mix.position else None
        right, down = POSITIONS[position] if position else (rng.random(), rng.random())
        side = self._side(rng, size)
        free = self.size - side
        left, top = (min(max(round(free * share + rng.uniform(-0.04, 0.04) * self.size), 0), free) for share in (right, down))
        name = f"{size} {colour} {shape}" if rng.random() < self.mix.size else f"{colour} {shape}"
        drawn = DrawnShape(shape, colour, shade(rng, colour), (left, top, left + side, top + side))
        background, after = self._background((colour,), (shape,), rng)
        caption = _vary_wording(rng, article(name)) + (f" {position}" if position else "") + after
        return ShapesScene("single", (drawn,), caption, background, shade(rng, background), position)

    def _count(self, colour: str, shape: str, rng: np.random.Generator) -> ShapesScene:
        counts = [count for count, word in COUNTS.items() if self.allowed("shape count", word, shape)]
        if not counts:
            return self._single(colour, shape, rng)
        count, paint = pick(rng, counts), shade(rng, colour)
        # One shape in each of `count` different quarters, so that they do not overlap.
        drawn = []
        for quarter in sorted(rng.permutation(4)[:count]):
            side = self._side(rng, "small") if rng.random() < 0.5 else round(rng.uniform(0.3, 0.42) * self.size)
            free = self.size // 2 - side - 1
            left = int(quarter % 2) * (self.size // 2) + int(rng.integers(free + 1))
            top = int(quarter // 2) * (self.size // 2) + int(rng.integers(free + 1))
            drawn.append(DrawnShape(shape, colour, paint, (left, top, left + side, top + side)))
        background, after = self._background((colour,), (shape,), rng)
        caption = _vary_wording(rng, f"{COUNTS[count]} {colour} {plural(shape)}") + after
        return ShapesScene("count", tuple(drawn), caption, background, shade(rng, background))

    def _pair(self, colour: str, shape: str, rng: np.random.Generator) -> ShapesScene:
        while True:
            other_colour, other = self.things[int(rng.integers(len(self)))]
            if (other_colour, other) != (colour, shape) and self.allowed("shape pair", *sorted((shape, other))):
                break
        relation = pick(rng, list(RELATIONS))
        along = 0 if relation in ("left", "above") else 1
        drawn = []
        for each, (name, paint) in enumerate(((shape, colour), (other, other_colour))):
            side = round(rng.uniform(0.28, 0.46) * self.size)
            half = abs(along - each) * (self.size - self.size // 2) + int(rng.integers(max(1, self.size // 2 - side)))
            aside = round((self.size - side) / 2 + rng.uniform(-0.15, 0.15) * self.size)
            left, top = (half, aside) if relation in ("left", "right") else (aside, half)
            drawn.append(DrawnShape(name, paint, shade(rng, paint), (left, top, left + side, top + side)))
        background, after = self._background((colour, other_colour), (shape, other), rng)
        words = pick(rng, RELATIONS[relation])
        caption = _vary_wording(rng, relation_phrase(f"{colour} {shape}", words, f"{other_colour} {other}")) + after
        return ShapesScene("pair", tuple(drawn), caption, background, shade(rng, background), relation=relation)

    def _side(self, rng: np.random.Generator, size: str) -> int:
        return round(rng.uniform(*SIZES[size]) * self.size)

    def _background(self, colours: Sequence[str], shapes: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """A random background colour and its caption suffix; white is not mentioned."""
        if rng.random() >= self.mix.background:
            return "white", ""
        free = [c for c in PAINTS if c not in colours and all(self.allowed("shape background", shape, c) for shape in shapes)]
        colour = pick(rng, free)
        return colour, on_background(colour)

    def render(self, scene: ShapesScene) -> Image.Image:
        """Draw a scene as an RGB image (size, size)."""
        image = Image.new("RGB", (self.size, self.size), scene.paint)
        for drawn in scene.shapes:
            image.paste(drawn.paint, (0, 0), self._mask(drawn))
        return image

    def masks(self, scene: ShapesScene) -> np.ndarray:
        """The coverage of each pixel by each shape: float32 (shapes, size, size) in [0, 1]."""
        return np.stack([np.asarray(self._mask(drawn), dtype=np.float32) / 255 for drawn in scene.shapes])

    def _mask(self, drawn: DrawnShape) -> Image.Image:
        mask = Image.new("L", (self.size * _SUPERSAMPLING, self.size * _SUPERSAMPLING))
        pen = ImageDraw.Draw(mask)
        left, top, right, bottom = (edge * _SUPERSAMPLING for edge in drawn.box)
        side = right - left
        if drawn.shape in POLYGONS:
            pen.polygon([(left + x * (side - 1), top + y * (side - 1)) for x, y in POLYGONS[drawn.shape]], fill=255)
        else:
            pen.ellipse((left, top, right - 1, bottom - 1), fill=255)
            if drawn.shape == "ring":
                hole = side * 0.24
                pen.ellipse((left + hole, top + hole, right - 1 - hole, bottom - 1 - hole), fill=0)
        return mask.reduce(_SUPERSAMPLING)


def _vary_wording(rng: np.random.Generator, phrase: str) -> str:
    return pick(rng, ("", "", "a picture of ", "a drawing of ")) + phrase
