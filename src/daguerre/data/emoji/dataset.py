"""The emoji source: one thing, one recoloured, one on a coloured background, or two with their places, each said in words.

A sample is first a `Scene` — which things, where, in which colours, and what is said — and then a drawing of it. Scenes are cheap, so
captions alone cost no drawing. Words come apart from things because colour, background and place are drawn independently of the thing;
one in ten combinations of thing and colour, thing and background, thing and thing is held out and never trained on.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from daguerre.data.captions import IN_ORDER, OPPOSITE, RELATIONS, on_background, pick, relation_phrase, vary_wording
from daguerre.data.colours import HUES, PAINTS, colour_of, hue_turn, main_hue, shade, turn_hues
from daguerre.data.dataset import Sample, Split, is_held_out, sample_captions
from daguerre.data.emoji.archive import ARCHIVE, ARCHIVE_SIZE, read_images
from daguerre.data.emoji.things import Thing, read_things
from daguerre.errors import DaguerreError, nearest

_VERSION = 3  # raise it when the same (index, rng) would give another sample


@dataclass(frozen=True)
class EmojiMix:
    """How often which kind of image is drawn; what is left is one thing on white. Shares are of the things that admit the kind."""

    recoloured: float = 0.15
    own_colour: float = 0.2  # of the recoloured: nothing changed, its own colour named ("a yellow banana")
    background: float = 0.15
    pair: float = 0.15
    centred: float = 0.5  # in the middle, as large as fits, not mirrored; of pairs: each in the middle of its half
    mirrored: float = 0.25  # of the others, where mirroring changes no meaning
    other_name: float = 0.25  # of the things that have another name
    and_pair: float = 0.2  # of the pairs: "a cat and a pizza", side by side as one reads
    in_order: bool = False  # of the others, the left or upper thing is always told first

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or max(self.recoloured + self.background + self.pair, *asdict(self).values()) > 1:
            raise DaguerreError(f"{self} is not a mixture: shares lie between 0 and 1, and those of the kinds add up to at most 1.")


@dataclass(frozen=True)
class PlacedThing:
    """A thing in a scene: centre and side as shares of the image's side, x to the right, y down."""

    thing: Thing
    x: float = 0.5
    y: float = 0.5
    side: float = 0.94
    mirrored: bool = False
    colour: str | None = None  # turned to this colour; None: its own

    def box(self, size: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels."""
        side = round(self.side * size)
        left = min(max(round(self.x * size - side / 2), 0), size - side)
        top = min(max(round(self.y * size - side / 2), 0), size - side)
        return left, top, left + side, top + side


@dataclass(frozen=True)
class EmojiScene:
    """What is drawn and what is said of it. `kind` is "single", "recoloured", "background" or "pair"."""

    kind: str
    placed: tuple[PlacedThing, ...]
    caption: str
    background: str = "white"
    paint: tuple[int, int, int] = PAINTS["white"]
    relation: str | None = None  # of a pair: where the first is as seen from the second, if the caption tells it
    hard_negative: str = ""  # such a caption with the opposite relation

    @property
    def label_key(self) -> str:
        """What the caption says, whichever way it is worded: the things in order, their colours, the background, the relation."""
        things = [(placed.thing.name, placed.colour) for placed in self.placed]
        return str((self.kind, things if self.relation else sorted(things, key=str), self.background, self.relation))


class EmojiDataset:
    """Emoji with captions at `size` pixels a side, index = thing. "train" never shows a held-out combination, "all" shows every one."""

    def __init__(self, size: int = 64, split: Split = "train", mix: EmojiMix = EmojiMix(), archive: Path = ARCHIVE):
        """Raises DaguerreError for sizes under 16 or an unreadable archive."""
        if size < 16:
            raise DaguerreError(f"Emoji of {size} pixels cannot be told apart; use 16 or more.")
        self.size, self.split, self.mix, self.archive = size, split, mix, archive
        self.things: Sequence[Thing] = read_things(archive)
        self._turns: dict[int, dict[str, list[int]]] = {}  # by thing, filled as they are met

    @property
    def key(self) -> str:
        settings = {"emoji": _VERSION, "things": len(self.things), "size": self.size, "split": self.split, **asdict(self.mix)}
        return json.dumps(settings, sort_keys=True)

    def __len__(self) -> int:
        return len(self.things)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        scene = self.scene(index, rng)
        return Sample(self.render(scene), scene.caption, scene.label_key, scene.hard_negative)

    def captions(self, count: int, seed: int) -> list[str]:
        return sample_captions(lambda index, rng: self.scene(index, rng).caption, len(self), count, seed)

    # What to draw

    def scene(self, index: int, rng: np.random.Generator) -> EmojiScene:
        """A scene whose first thing is `index`, of a kind drawn from the mix."""
        thing, mix, chance = self.things[index], self.mix, rng.random()
        if chance < mix.recoloured:
            scene = self._recoloured(thing, rng) if thing.recolourable else None
        elif chance < mix.recoloured + mix.background:
            scene = self._on_background(thing, rng)
        elif chance < mix.recoloured + mix.background + mix.pair:
            scene = self._pair(thing, rng) if thing.pairable else None
        else:
            scene = None
        return scene or self._single(thing, rng)

    def allowed(self, kind: str, *parts: str) -> bool:
        """Whether this split may show a combination."""
        return self.split == "all" or not is_held_out(kind, *parts)

    def colours_of(self, thing: Thing) -> list[str]:
        """The colour words a thing can honestly be turned to, in a fixed order; none that it has by nature."""
        if not thing.recolourable:
            return []
        return [colour for colour in HUES if colour not in thing.own_colours and self._turn(thing, colour) is not None]

    def _single(self, thing: Thing, rng: np.random.Generator) -> EmojiScene:
        return EmojiScene("single", (self._placed(thing, rng),), vary_wording(rng, self._name(thing, rng)))

    def _recoloured(self, thing: Thing, rng: np.random.Generator) -> EmojiScene | None:
        if rng.random() < self.mix.own_colour and thing.colour is not None and thing.base == thing.name:
            return EmojiScene("recoloured", (self._placed(thing, rng),), vary_wording(rng, f"{thing.colour} {thing.name}"))
        for colour in rng.permutation(list(HUES)):
            if colour in thing.own_colours or not self.allowed("colour", thing.base, colour) or self._turn(thing, colour) is None:
                continue
            return EmojiScene("recoloured", (self._placed(thing, rng, str(colour)),), vary_wording(rng, f"{colour} {thing.base}"))
        return None

    def _on_background(self, thing: Thing, rng: np.random.Generator) -> EmojiScene | None:
        choices = [c for c in PAINTS if c != thing.colour and self.allowed("background", thing.name, c)]
        if not choices:
            return None
        colour = pick(rng, choices)
        caption = vary_wording(rng, self._name(thing, rng), on_background(colour))
        return EmojiScene("background", (self._placed(thing, rng),), caption, colour, shade(rng, colour))

    def _pair(self, thing: Thing, rng: np.random.Generator) -> EmojiScene | None:
        for _ in range(20):
            other = pick(rng, self.pairable)
            if other is not thing and self.allowed("pair", *sorted((thing.name, other.name))):
                told = rng.random() >= self.mix.and_pair
                # Placed anyhow, things that "and" joins would leave a model nothing to begin with: both then go to one place, and merge.
                relation = pick(rng, IN_ORDER if self.mix.in_order else list(RELATIONS)) if told else "left"
                wording = pick(rng, RELATIONS[relation]) if told else "and"
                first, second = self._name(thing, rng), self._name(other, rng)
                scene = EmojiScene("pair", self.pair_positions(thing, relation, other, rng), relation_phrase(first, wording, second))
                if not told:
                    return scene
                return replace(
                    scene, relation=relation, hard_negative=relation_phrase(first, pick(rng, RELATIONS[OPPOSITE[relation]]), second)
                )
        return None

    def pair_positions(self, first: Thing, relation: str, second: Thing, rng: np.random.Generator) -> tuple[PlacedThing, PlacedThing]:
        """Two things so that the first is "left", "right", "above" or "below" the second; their boxes never overlap."""
        along = 0.25 if relation in ("left", "above") else 0.75
        centred = rng.random() < self.mix.centred
        places = []
        for thing, centre in ((first, along), (second, 1 - along)):
            side, aside = (0.46, 0.5) if centred else (rng.uniform(0.42, 0.49), 0.5 + rng.uniform(-0.1, 0.1))
            x, y = (centre, aside) if relation in ("left", "right") else (aside, centre)
            places.append(PlacedThing(thing, x, y, side, not centred and self._mirrored(thing, rng)))
        return places[0], places[1]

    def _placed(self, thing: Thing, rng: np.random.Generator, colour: str | None = None) -> PlacedThing:
        """A thing in the middle, or somewhere."""
        if rng.random() < self.mix.centred:
            return PlacedThing(thing, colour=colour)
        side = rng.uniform(0.74, 0.98)
        free = (1 - side) / 2
        x, y = 0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-free, free)
        return PlacedThing(thing, x, y, side, self._mirrored(thing, rng), colour)

    def _mirrored(self, thing: Thing, rng: np.random.Generator) -> bool:
        return bool(rng.random() < self.mix.mirrored) and thing.mirrorable

    def _name(self, thing: Thing, rng: np.random.Generator) -> str:
        return pick(rng, thing.other_names) if thing.other_names and rng.random() < self.mix.other_name else thing.name

    @cached_property
    def pairable(self) -> list[Thing]:
        """The things that can stand beside another."""
        return [thing for thing in self.things if thing.pairable]

    # Drawing it

    def portrait(self, name: str, background: str = "white") -> Image.Image:
        """A thing by name, in the middle of a background of one of PAINTS: RGB (size, size). Raises DaguerreError for an unknown name."""
        named = {each: thing for thing in reversed(self.things) for each in (*thing.other_names, thing.name)}
        if name not in named:
            raise DaguerreError(f"There is no emoji called '{name}'.{nearest(name, named)}")
        return self.render(EmojiScene("single", (PlacedThing(named[name], side=0.86),), name, background, PAINTS[background]))

    def render(self, scene: EmojiScene) -> Image.Image:
        """Draw a scene: RGB (size, size)."""
        image = Image.new("RGB", (self.size, self.size), scene.paint)
        for placed in scene.placed:
            left, top, right, _ = placed.box(self.size)
            thing = self._thing_image(placed.thing, right - left)
            if placed.colour is not None:
                table = self._turn(placed.thing, placed.colour)
                assert table is not None, f"{placed.thing.name} cannot be {placed.colour}"
                thing = turn_hues(thing, table)
            if placed.mirrored:
                thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image.paste(thing, (left, top), thing)
        return image

    def _thing_image(self, thing: Thing, side: int = ARCHIVE_SIZE) -> Image.Image:
        """A thing alone, RGBA (side, side)."""
        whole = Image.fromarray(read_images(self.archive)[thing.index], "RGBa")
        return (whole if side == ARCHIVE_SIZE else whole.resize((side, side), Image.Resampling.BICUBIC)).convert("RGBA")

    def _turn(self, thing: Thing, colour: str) -> list[int] | None:
        """The hue table that turns a thing to a colour; None where its pixels would not then deserve the word."""
        if thing.index not in self._turns:
            image = self._thing_image(thing, 64)
            hue = main_hue(image)
            tables = {} if hue is None else {name: hue_turn(hue, target) for name, target in HUES.items()}
            self._turns[thing.index] = {name: table for name, table in tables.items() if colour_of(turn_hues(image, table)) == name}
        return self._turns[thing.index].get(colour)
