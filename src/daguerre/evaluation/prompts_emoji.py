"""Prompts for measuring what a model learned, each with its true render and 99 others to be told from (R-precision).

R-precision (Xu et al. 2018, arXiv:1711.10485, section 4): a judge ranks the prompt of a generated image among 100. Here half of the
others share its thing and differ in colour, background, place or company, and half are of the same kind with other things, so that
neither the thing alone nor its colour alone is enough.

A prompt of two things with their places says one thing of each half of the image, and is judged there: an embedding of the whole knows
what is in an image long before it knows where.
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

HeldOut = Literal["colour", "background", "pair", "and"]  # "and": a pair whose places are told by the order of the names alone
DISTRACTORS = 99
_SAME_THING = 49  # of them
_PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "above": (0.5, 0.25), "below": (0.5, 0.75)}


Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of an image's sides
WHOLE: Box = (0, 0, 1, 1)


@dataclass(frozen=True)
class Candidate:
    """A prompt, and what it says of each part of an image that it speaks of: of the whole, or of the places of two things."""

    prompt: str
    parts: tuple[tuple[Box, str], ...]


@dataclass(frozen=True)
class EvalPrompt:
    """A claim, its true render (RGB), what it measures ("known" or a HeldOut), and the claims it is ranked among."""

    candidate: Candidate
    image: Image.Image
    kind: str
    distractors: tuple[Candidate, ...]

    @property
    def prompt(self) -> str:
        return self.candidate.prompt

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that it is ranked among, its own claim first."""
        return (self.candidate, *self.distractors)


def known_prompts(source: EmojiDataset, count: int, seed: int) -> list[EvalPrompt]:
    """`count` different things, asked for by the names that training used."""
    if not 1 <= count <= len(source.things):
        raise DaguerreError(f"{count} known prompts were asked for; there are {len(source.things)} things.")
    rng = np.random.default_rng(seed)
    chosen = [source.things[int(i)] for i in rng.permutation(len(source.things))[:count]]
    return [_trial(source, rng, _plain(thing), "known") for thing in chosen]


def held_out_prompts(source: EmojiDataset, count: int, seed: int, kinds: tuple[HeldOut, ...] = get_args(HeldOut)) -> list[EvalPrompt]:
    """`count` prompts of each kind, of combinations that `split="train"` never shows.

    Raises DaguerreError if fewer than `count` exist (a few hundred colours do).
    """
    trials = []
    for kind in kinds:
        rng = np.random.default_rng([seed, len(kind)])
        scenes: dict[str, EmojiScene] = {}
        for scene in _HELD_OUT[kind](source, rng):
            scenes.setdefault(scene.caption, scene)
            if len(scenes) == count:
                break
        if len(scenes) < count:
            raise DaguerreError(f"{count} held-out {kind} prompts were asked for; there are {len(scenes)}.")
        trials += [_trial(source, rng, scene, kind) for scene in scenes.values()]
    return trials


def _held_out_colours(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    for i in rng.permutation(len(source.things)):
        thing = source.things[int(i)]
        yield from (_coloured(thing, c) for c in source.colours_of(thing) if is_held_out("colour", thing.base, c))


def _held_out_backgrounds(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    for i in rng.permutation(len(source.things)):
        thing = source.things[int(i)]
        free = [colour for colour in _backgrounds(thing) if is_held_out("background", thing.name, colour)]
        if free:
            yield _on(thing, pick(rng, free))


def _held_out_pairs(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    while True:
        first, second = pick(rng, source.pairable), pick(rng, source.pairable)
        if first is not second and is_held_out("pair", *sorted((first.name, second.name))):
            yield _beside(first, pick(rng, list(RELATIONS)), second)


def _held_out_joined(source: EmojiDataset, rng: np.random.Generator) -> Iterator[EmojiScene]:
    for scene in _held_out_pairs(source, rng):
        first, second = (placed.thing for placed in scene.placed)
        yield replace(_beside(first, "left", second), caption=relation_phrase(first.name, "and", second.name))


_HELD_OUT: dict[str, Callable[[EmojiDataset, np.random.Generator], Iterator[EmojiScene]]] = {
    "colour": _held_out_colours,
    "background": _held_out_backgrounds,
    "pair": _held_out_pairs,
    "and": _held_out_joined,
}


# Scenes in their plainest wording


def _plain(thing: Thing) -> EmojiScene:
    return EmojiScene("single", (PlacedThing(thing),), with_article(thing.name))


def _coloured(thing: Thing, colour: str) -> EmojiScene:
    return EmojiScene("recoloured", (PlacedThing(thing, colour=colour),), with_article(f"{colour} {thing.base}"))


def _on(thing: Thing, colour: str) -> EmojiScene:
    caption = with_article(thing.name) + on_background(colour)
    return EmojiScene("background", (PlacedThing(thing, side=0.86),), caption, colour, PAINTS[colour])


def _beside(first: Thing, relation: str, second: Thing) -> EmojiScene:
    here, there = _PLACES[relation], _PLACES[OPPOSITE[relation]]
    placed = (PlacedThing(first, *here, side=0.46), PlacedThing(second, *there, side=0.46))
    return EmojiScene("pair", placed, relation_phrase(first.name, RELATIONS[relation][0], second.name), relation=relation)


def _backgrounds(thing: Thing) -> list[str]:
    return [colour for colour in PAINTS if colour not in ("white", thing.colour)]


# What a prompt is told from


def _trial(source: EmojiDataset, rng: np.random.Generator, scene: EmojiScene, kind: str) -> EvalPrompt:
    taken = {scene.caption}
    distractors = [*_first_new(_same_thing(source, rng, scene), _SAME_THING, taken)]
    distractors += _first_new(_same_kind(source, rng, scene), DISTRACTORS - _SAME_THING, taken)
    return EvalPrompt(_claim(scene), source.render(scene), kind, tuple(_claim(other) for other in distractors))


def _claim(scene: EmojiScene) -> Candidate:
    """What a scene of this module says: of a pair, each thing's name in its half, which is a square; else the caption of the whole."""
    if scene.kind != "pair":
        return Candidate(scene.caption, ((WHOLE, scene.caption),))
    return Candidate(scene.caption, tuple((_around(placed), with_article(placed.thing.name)) for placed in scene.placed))


def _around(placed: PlacedThing) -> Box:
    return placed.x - 0.25, placed.y - 0.25, placed.x + 0.25, placed.y + 0.25


def _first_new(scenes: Iterator[EmojiScene], count: int, taken: set[str]) -> list[EmojiScene]:
    """The first `count` scenes whose captions were not taken yet, now taken."""
    found: list[EmojiScene] = []
    while len(found) < count:
        scene = next(scenes)
        if scene.caption not in taken:
            taken.add(scene.caption)
            found.append(scene)
    return found


def _same_thing(source: EmojiDataset, rng: np.random.Generator, scene: EmojiScene) -> Iterator[EmojiScene]:
    """The scene's thing otherwise: first what differs least, at last, without end, in other company."""
    thing = scene.placed[0].thing
    colours = [_coloured(thing, colour) for colour in source.colours_of(thing)]
    grounds = [_on(thing, colour) for colour in _backgrounds(thing)]
    if scene.kind == "pair":
        other, told = scene.placed[1].thing, scene.relation
        yield from (_beside(thing, relation, other) for relation in RELATIONS if relation != told)
        yield from (_plain(thing), _plain(other))
    elif scene.kind != "single":
        yield _plain(thing)
    yield from colours + grounds if scene.kind == "recoloured" else grounds + colours
    while True:
        other = pick(rng, source.pairable)
        if other is not thing and (len(scene.placed) == 1 or other is not scene.placed[1].thing):
            yield _beside(thing, pick(rng, list(RELATIONS)), other)


def _same_kind(source: EmojiDataset, rng: np.random.Generator, scene: EmojiScene) -> Iterator[EmojiScene]:
    """Other things, said in the same way."""
    here = {placed.thing.index for placed in scene.placed}
    while True:
        thing = source.things[int(rng.integers(len(source.things)))]
        if thing.index in here:
            continue
        if scene.kind == "single":
            yield _plain(thing)
        elif scene.kind == "background":
            yield _on(thing, scene.background if rng.random() < 0.5 else pick(rng, _backgrounds(thing)))
        elif scene.kind == "recoloured":
            colours = source.colours_of(thing)
            same = scene.placed[0].colour
            if colours:
                yield _coloured(thing, same if same in colours and rng.random() < 0.5 else pick(rng, colours))
        else:
            other = pick(rng, source.pairable)
            if thing.pairable and other is not thing and other.index not in here:
                yield _beside(thing, pick(rng, list(RELATIONS)), other)
