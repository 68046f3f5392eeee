"""Evaluation prompts for models of drawn shapes, like `prompts_emoji`: each with a true render and 99 distractors.

The distractors are first all prompts that differ in exactly one property (colour, shape, background or count), then others of the same
kind. So a scorer must recognise every property. Sizes, positions and pairs are not tested.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from daguerre.data.captions import article, on_background, plural
from daguerre.data.colours import PAINTS
from daguerre.data.dataset import is_held_out
from daguerre.data.shapes import COLOURS, COUNTS, SHAPES, ShapesDataset, ShapesMix
from daguerre.evaluation.prompts_emoji import DISTRACTORS, FULL_IMAGE, Candidate, EvalPrompt

_MIN_SIDE = 0.3  # of a shape, as a fraction of the image side: smaller shapes are hard to recognise


@dataclass(frozen=True)
class _ShapesPrompt:
    """`count` equal shapes of one colour on a background."""

    colour: str
    shape: str
    background: str = "white"
    count: int = 1

    @property
    def candidate(self) -> Candidate:
        named = f"{self.colour} {self.shape}"
        phrase = article(named) if self.count == 1 else f"{COUNTS[self.count]} {plural(named)}"
        prompt = phrase + ("" if self.background == "white" else on_background(self.background))
        return Candidate(prompt, ((FULL_IMAGE, prompt),))

    @property
    def kind(self) -> str:
        """The first held-out combination that it contains, or "known"."""
        if is_held_out("shape colour", self.colour, self.shape):
            return "colour"
        if is_held_out("shape background", self.shape, self.background):
            return "background"
        if self.count > 1 and is_held_out("shape count", COUNTS[self.count], self.shape):
            return "count"
        return "known"


def shapes_prompts(size: int, count: int, seed: int) -> list[EvalPrompt]:
    """`count` known prompts of one shape on white, and `count` of each held-out kind: shape and colour, shape and background, shape and
    number. If a kind has fewer combinations they repeat with other true renders."""
    rng = np.random.default_rng(seed)
    single = [_ShapesPrompt(colour, shape) for colour in COLOURS for shape in SHAPES]
    backgrounds = [
        replace(prompt, background=background) for prompt in single for background in PAINTS if background not in (prompt.colour, "white")
    ]
    counts = [replace(prompt, count=number) for prompt in single for number in COUNTS]
    by_kind = {"known": single, "colour": single, "background": backgrounds, "count": counts}
    prompts = []
    for kind, candidates in by_kind.items():
        found = [prompt for prompt in candidates if prompt.kind == kind]
        order = [i for _ in range(-(-count // len(found))) for i in rng.permutation(len(found))]
        prompts += [_eval_prompt(found[int(i)], kind, candidates, size, rng) for i in order[:count]]
    return prompts


def _eval_prompt(prompt: _ShapesPrompt, kind: str, candidates: list[_ShapesPrompt], size: int, rng: np.random.Generator) -> EvalPrompt:
    near = dict.fromkeys(_differing_once(prompt))
    far = [each for each in candidates if each != prompt and each not in near]
    selected = rng.permutation(len(far))[: DISTRACTORS - len(near)]
    others = [*near, *(far[int(i)] for i in selected)]
    return EvalPrompt(prompt.candidate, _render(prompt, size, rng), kind, tuple(other.candidate for other in others))


def _differing_once(prompt: _ShapesPrompt) -> Iterator[_ShapesPrompt]:
    """All prompts that differ in one property. The background is never removed: the prompt without it would be true as well."""
    yield from (replace(prompt, colour=colour) for colour in COLOURS if colour not in (prompt.colour, prompt.background))
    yield from (replace(prompt, shape=shape) for shape in SHAPES if shape != prompt.shape)
    if prompt.count == 1:
        yield from (
            replace(prompt, background=background) for background in PAINTS if background not in (prompt.colour, prompt.background, "white")
        )
    yield from (replace(prompt, count=count) for count in (1, *COUNTS) if count != prompt.count)


def _render(prompt: _ShapesPrompt, size: int, rng: np.random.Generator) -> Image.Image:
    """A true render: a random scene of the dataset without shapes that are too small."""
    source = ShapesDataset(size, split="all", mix=ShapesMix(count=float(prompt.count > 1), pair=0, background=0))
    index = source.things.index((prompt.colour, prompt.shape))
    while True:
        scene = source.scene(index, rng)
        sides = [right - left for left, _, right, _ in (drawn.box for drawn in scene.shapes)]
        if len(scene.shapes) == prompt.count and min(sides) >= _MIN_SIDE * size:
            return source.render(replace(scene, background=prompt.background, paint=PAINTS[prompt.background]))
