"""Evaluation prompts for emoji models, each with a true render and 99 distractors (R-precision).

R-precision (Xu et al. 2018, arXiv:1711.10485, section 4): a scorer ranks the true prompt of a generated image among 100. Half of the
distractors have the same thing with another colour, background, position or second thing; half are of the same kind with other things. So
recognising only the thing or only its colour is not enough.

A pair is scored per half of the image, one thing in each, because image embeddings encode positions poorly.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from PIL import Image

from daguerre.data.captions import OPPOSITE, RELATIONS, on_background, pick, relation_phrase
from daguerre.data.colours import PAINTS
from daguerre.data.dataset import is_held_out
from daguerre.data.emoji.dataset import EmojiDataset, EmojiScene, PlacedThing
from daguerre.data.emoji.names import with_article
from daguerre.data.emoji.things import Thing
from daguerre.errors import DaguerreError

HeldOut = Literal["colour", "background", "pair", "and"]  # "and": a pair without a relation, placed from left to right
DISTRACTORS = 99
SAME_THING_DISTRACTORS = 49
_CENTRES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "above": (0.5, 0.25), "below": (0.5, 0.75)}
Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image sides
FULL_IMAGE: Box = (0, 0, 1, 1)


@dataclass(frozen=True)
class Candidate:
    """A prompt with the expected text for parts of the image: one for the full image, or one for the box of each of two things."""

    prompt: str
    parts: tuple[tuple[Box, str], ...]


@dataclass(frozen=True)
class EvalPrompt:
    """The true candidate, its render (RGB), its kind ("known" or a HeldOut), and the other candidates."""

    candidate: Candidate
    image: Image.Image
    kind: str
    distractors: tuple[Candidate, ...]

    @property
    def prompt(self) -> str:
        return self.candidate.prompt

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates, the true one first."""
        return (self.candidate, *self.distractors)


def known_prompts(source: EmojiDataset, count: int, seed: int) -> list[EvalPrompt]:
    """Prompts for `count` different things, with the names of the training captions."""
    if not 1 <= count <= len(source.things):
        raise DaguerreError(f"The number of known prompts is {count}; it must be in 1 … {len(source.things)}, the number of things.")
    rng = np.random.default_rng(seed)
    chosen = [source.things[int(i)] for i in rng.permutation(len(source.things))[:count]]
    return [_eval_prompt(source, rng, _single(thing), "known") for thing in chosen]


def held_out_prompts(source: EmojiDataset, count: int, seed: int, kinds: tuple[HeldOut, ...] = get_args(HeldOut)) -> list[EvalPrompt]:
    """`count` prompts of each kind, for combinations that `split="train"` does not contain.

    Raises DaguerreError if there are fewer (there are a few hundred colours).
    """
    prompts = []
    for kind in kinds:
        rng = np.random.default_rng([seed, len(kind)])
        scenes: dict[str, EmojiScene] = {}
        for scene in _HELD_OUT[kind](source, rng):
            scenes.setdefault(scene.caption, scene)
            if len(scenes) == count:
                break
        if len(scenes) < count:
            raise DaguerreError(f"There are only {len(scenes)} held-out {kind!r} prompts, not {count}; use a smaller number.")
        prompts += [_eval_prompt(source, rng, scene, kind) for scene in scenes.values()]
    return prompts


def _held_out_colours(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    for i in rng.permutation(len(source.things)):
        thing = source.things[int(i)]
        yield from (_recoloured(thing, c) for c in source.colours_of(thing) if is_held_out("colour", thing.base, c))


def _held_out_backgrounds(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    for i in rng.permutation(len(source.things)):
        thing = source.things[int(i)]
        free = [colour for colour in _backgrounds(thing) if is_held_out("background", thing.name, colour)]
        if free:
            yield _on_background(thing, pick(rng, free))


def _held_out_pairs(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    while True:
        first, second = pick(rng, source.pairable), pick(rng, source.pairable)
        if first is not second and is_held_out("pair", *sorted((first.name, second.name))):
            yield _pair(first, pick(rng, list(RELATIONS)), second)


def _held_out_and_pairs(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    for scene in _held_out_pairs(source, rng):
        first, second = (placed.thing for placed in scene.placed)
        yield replace(_pair(first, "left", second), caption=relation_phrase(first.name, "and", second.name))


_HELD_OUT: dict[str, Callable[[EmojiDataset, np.random.Generator], Iterator[EmojiScene]]] = {
    "colour": _held_out_colours,
    "background": _held_out_backgrounds,
    "pair": _held_out_pairs,
    "and": _held_out_and_pairs,
}


# Scenes with the plainest captions


def _single(thing: Thing) -> EmojiScene:
    return EmojiScene("single", (PlacedThing(thing),), with_article(thing.name))


def _recoloured(thing: Thing, colour: str) -> EmojiScene:
    return EmojiScene("recoloured", (PlacedThing(thing, colour=colour),), with_article(f"{colour} {thing.base}"))


def _on_background(thing: Thing, colour: str) -> EmojiScene:
    caption = with_article(thing.name) + on_background(colour)
    return EmojiScene("background", (PlacedThing(thing, side=0.86),), caption, colour, PAINTS[colour])


def _pair(first: Thing, relation: str, second: Thing) -> EmojiScene:
    first_centre, second_centre = _CENTRES[relation], _CENTRES[OPPOSITE[relation]]
    placed = (PlacedThing(first, *first_centre, side=0.46), PlacedThing(second, *second_centre, side=0.46))
    return EmojiScene("pair", placed, relation_phrase(first.name, RELATIONS[relation][0], second.name), relation=relation)


def _backgrounds(thing: Thing) -> list[str]:
    return [colour for colour in PAINTS if colour not in ("white", thing.colour)]


# Distractors


def _eval_prompt(source: EmojiDataset, rng: np.random.Generator, scene: EmojiScene, kind: str) -> EvalPrompt:
    captions = {scene.caption}
    distractors = [*_first_new(_same_thing(source, rng, scene), SAME_THING_DISTRACTORS, captions)]
    distractors += _first_new(_same_kind(source, rng, scene), DISTRACTORS - SAME_THING_DISTRACTORS, captions)
    return EvalPrompt(_candidate(scene), source.render(scene), kind, tuple(_candidate(other) for other in distractors))


def _candidate(scene: EmojiScene) -> Candidate:
    """The candidate of a scene: for a pair the name of each thing in its half of the image, else the caption for the full image."""
    if scene.kind != "pair":
        return Candidate(scene.caption, ((FULL_IMAGE, scene.caption),))
    return Candidate(scene.caption, tuple((_box(placed), with_article(placed.thing.name)) for placed in scene.placed))


def _box(placed: PlacedThing) -> Box:
    return placed.x - 0.25, placed.y - 0.25, placed.x + 0.25, placed.y + 0.25


def _first_new(scenes: Iterator[EmojiScene], count: int, captions: set[str]) -> list[EmojiScene]:
    """The first `count` scenes with new captions, which are added to `captions`."""
    found: list[EmojiScene] = []
    while len(found) < count:
        scene = next(scenes)
        if scene.caption not in captions:
            captions.add(scene.caption)
            found.append(scene)
    return found


def _same_thing(source: EmojiDataset, rng: np.random.Generator, scene: EmojiScene) -> Iterator[EmojiScene]:
    """Other scenes with the thing of a scene: first the most similar ones, finally an endless sequence of pairs with other things."""
    thing = scene.placed[0].thing
    colours = [_recoloured(thing, colour) for colour in source.colours_of(thing)]
    backgrounds = [_on_background(thing, colour) for colour in _backgrounds(thing)]
    if scene.kind == "pair":
        other = scene.placed[1].thing
        yield from (_pair(thing, relation, other) for relation in RELATIONS if relation != scene.relation)
        yield from (_single(thing), _single(other))
    elif scene.kind != "single":
        yield _single(thing)
    yield from colours + backgrounds if scene.kind == "recoloured" else backgrounds + colours
    while True:
        other = pick(rng, source.pairable)
        if other is not thing and (len(scene.placed) == 1 or other is not scene.placed[1].thing):
            yield _pair(thing, pick(rng, list(RELATIONS)), other)


def _same_kind(source: EmojiDataset, rng: np.random.Generator, scene: EmojiScene) -> Iterator[EmojiScene]:
    """An endless sequence of scenes of the same kind with other things."""
    used = {placed.thing.index for placed in scene.placed}
    while True:
        thing = source.things[int(rng.integers(len(source.things)))]
        if thing.index in used:
            continue
        if scene.kind == "single":
            yield _single(thing)
        elif scene.kind == "background":
            yield _on_background(thing, scene.background if rng.random() < 0.5 else pick(rng, _backgrounds(thing)))
        elif scene.kind == "recoloured":
            colours = source.colours_of(thing)
            original = scene.placed[0].colour
            if colours:
                yield _recoloured(thing, original if original in colours and rng.random() < 0.5 else pick(rng, colours))
        else:
            other = pick(rng, source.pairable)
            if thing.pairable and other is not thing and other.index not in used:
                yield _pair(thing, pick(rng, list(RELATIONS)), other)
