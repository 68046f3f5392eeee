"""Prompts for measuring what a model of drawn shapes learned, as `trials` has them for emoji: each with its true render and 99 others.

The others are first all that differ in one thing, the colour, the shape, the background or the number, then others said in the same way.
So a judge must see every one of these things to tell the prompt. Sizes, places and pairs are not asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from daguerre.data.captions import article, on_background
from daguerre.data.colours import PAINTS
from daguerre.data.dataset import is_held_out
from daguerre.data.shapes import COLOURS, COUNTS, SHAPES, ShapesDataset, ShapesMix
from daguerre.evaluation.prompts_emoji import DISTRACTORS, WHOLE, Candidate, EvalPrompt

_LEAST = 0.3  # of the image's side: a shape of fewer pixels could be any


@dataclass(frozen=True)
class _Asked:
    """So many shapes of one kind and colour on a background."""

    colour: str
    shape: str
    background: str = "white"
    count: int = 1

    @property
    def claim(self) -> Candidate:
        named = f"{self.colour} {self.shape}"
        phrase = article(named) if self.count == 1 else f"{COUNTS[self.count]} {named}{'es' if named.endswith('s') else 's'}"
        prompt = phrase + ("" if self.background == "white" else on_background(self.background))
        return Candidate(prompt, ((WHOLE, prompt),))

    @property
    def kind(self) -> str:
        """What of it training never shows, the first that applies, or "known"."""
        if is_held_out("shape colour", self.colour, self.shape):
            return "colour"
        if is_held_out("shape background", self.shape, self.background):
            return "background"
        if self.count > 1 and is_held_out("shape count", COUNTS[self.count], self.shape):
            return "count"
        return "known"


def shapes_prompts(size: int, count: int, seed: int) -> list[EvalPrompt]:
    """`count` prompts that training knows, of one shape on white, and of each kind that `split="train"` never shows: a shape in a colour,
    on a background, in a number. Where there are fewer of a kind they come again, with another true render."""
    rng = np.random.default_rng(seed)
    plain = [_Asked(colour, shape) for colour in COLOURS for shape in SHAPES]
    grounds = [replace(asked, background=ground) for asked in plain for ground in PAINTS if ground not in (asked.colour, "white")]
    counts = [replace(asked, count=many) for asked in plain for many in COUNTS]
    spaces = {"known": plain, "colour": plain, "background": grounds, "count": counts}
    trials = []
    for kind, space in spaces.items():
        asked = [each for each in space if each.kind == kind]
        orders = [i for _ in range(-(-count // len(asked))) for i in rng.permutation(len(asked))]
        trials += [_trial(asked[int(i)], kind, space, size, rng) for i in orders[:count]]
    return trials


def _trial(asked: _Asked, kind: str, space: list[_Asked], size: int, rng: np.random.Generator) -> EvalPrompt:
    near = dict.fromkeys(_differing_once(asked))
    far = [each for each in space if each != asked and each not in near]
    chosen = rng.permutation(len(far))[: DISTRACTORS - len(near)]
    others = [*near, *(far[int(i)] for i in chosen)]
    return EvalPrompt(asked.claim, _render(asked, size, rng), kind, tuple(other.claim for other in others))


def _differing_once(asked: _Asked) -> Iterator[_Asked]:
    """All that differ in one thing; a background is not left out, for what is said without it stays true."""
    yield from (replace(asked, colour=colour) for colour in COLOURS if colour not in (asked.colour, asked.background))
    yield from (replace(asked, shape=shape) for shape in SHAPES if shape != asked.shape)
    if asked.count == 1:
        yield from (replace(asked, background=ground) for ground in PAINTS if ground not in (asked.colour, asked.background, "white"))
    yield from (replace(asked, count=count) for count in (1, *COUNTS) if count != asked.count)


def _render(asked: _Asked, size: int, rng: np.random.Generator) -> Image.Image:
    """An image of it, in sizes and places as the source draws them, but none too small to tell."""
    source = ShapesDataset(size, split="all", mix=ShapesMix(count=float(asked.count > 1), pair=0, background=0))
    index = source.things.index((asked.colour, asked.shape))
    while True:
        scene = source.scene(index, rng)
        sides = [right - left for left, _, right, _ in (drawn.box for drawn in scene.shapes)]
        if len(scene.shapes) == asked.count and min(sides) >= _LEAST * size:
            return source.render(replace(scene, background=asked.background, paint=PAINTS[asked.background]))
