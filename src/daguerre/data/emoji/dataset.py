"""The emoji dataset: captioned images of one thing, a recoloured thing, a thing on a coloured background, or two things with a relation.

A sample is first an `EmojiScene` (things, positions, colours and the caption), which is then rendered. Scenes are cheap, so captions alone
need no rendering. Colour, background and position are independent of the thing, so that a model can learn the words separately; one in
ten combinations of thing and colour, thing and background, and thing and thing is held out from training.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from daguerre.data.captions import OPPOSITE, READING_ORDER, RELATIONS, on_background, pick, relation_phrase, vary_wording
from daguerre.data.colours import HUES, PAINTS, colour_of, hue_rotation, main_hue, rotate_hues, shade
from daguerre.data.dataset import Sample, Split, is_held_out, sample_captions
from daguerre.data.emoji.archive import ARCHIVE, ARCHIVE_SIZE, read_images
from daguerre.data.emoji.things import Thing, read_things
from daguerre.errors import DaguerreError, nearest

_VERSION = 3  # increase it when the same (index, rng) gives another sample


@dataclass(frozen=True)
class EmojiMix:
    """Probabilities of the kinds of scene, among the things that allow the kind; the remaining scenes show one thing on white."""

    recoloured: float = 0.15
    own_colour: float = 0.2  # of the recoloured: unchanged, with its original colour in the caption ("a yellow banana")
    background: float = 0.15
    pair: float = 0.15
    centred: float = 0.5  # in the centre with full size, not mirrored; of pairs: each in the centre of its half
    mirrored: float = 0.25  # of the others that may be mirrored
    other_name: float = 0.25  # of the things with another name
    and_pair: float = 0.2  # of the pairs: "a cat and a pizza", from left to right
    reading_order: bool = False  # in the other pairs the caption always names the left or upper thing first

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or max(self.recoloured + self.background + self.pair, *asdict(self).values()) > 1:
            raise DaguerreError(
                f"{self} is not a valid mixture: probabilities must be in [0, 1] and those of the kinds must sum to at most 1."
            )


@dataclass(frozen=True)
class PlacedThing:
    """A thing in a scene: centre and side as fractions of the image side, x to the right, y down."""

    thing: Thing
    x: float = 0.5
    y: float = 0.5
    side: float = 0.94
    mirrored: bool = False
    colour: str | None = None  # recoloured to this colour; None: original colours

    def box(self, size: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels."""
        side = round(self.side * size)
        left = min(max(round(self.x * size - side / 2), 0), size - side)
        top = min(max(round(self.y * size - side / 2), 0), size - side)
        return left, top, left + side, top + side


@dataclass(frozen=True)
class EmojiScene:
    """The things of an image and its caption. `kind` is "single", "recoloured", "background" or "pair"."""

    kind: str
    placed: tuple[PlacedThing, ...]
    caption: str
    background: str = "white"
    paint: tuple[int, int, int] = PAINTS["white"]
    relation: str | None = None  # of a pair: the position of the first relative to the second, if in the caption
    hard_negative: str = ""  # the caption with the opposite relation

    @property
    def label_key(self) -> str:
        """The content of the caption, independent of its wording: things in order, colours, background, relation."""
        things = [(placed.thing.name, placed.colour) for placed in self.placed]
        return str((self.kind, things if self.relation else sorted(things, key=str), self.background, self.relation))


class EmojiDataset:
    """Emoji with captions; image side `size` pixels; the index selects the thing. "train" never shows a held-out combination."""

    rendered = True

    def __init__(self, size: int = 64, split: Split = "train", mix: EmojiMix = EmojiMix(), archive: Path = ARCHIVE):
        """Raises DaguerreError for sizes under 16 or an unreadable archive."""
        if size < 16:
            raise DaguerreError(f"size is {size}; emoji need 16 pixels or more to be recognisable.")
        self.size, self.split, self.mix, self.archive = size, split, mix, archive
        self.things: Sequence[Thing] = read_things(archive)
        self._hue_tables: dict[int, dict[str, list[int]]] = {}  # by thing, computed on first use

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

    # Scenes

    def scene(self, index: int, rng: np.random.Generator) -> EmojiScene:
        """A scene whose first thing is `index`, of a random kind."""
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
        """Whether this split contains a combination."""
        return self.split == "all" or not is_held_out(kind, *parts)

    def colours_of(self, thing: Thing) -> list[str]:
        """The colours that a thing can be recoloured to, in a fixed order, without its original colours."""
        if not thing.recolourable:
            return []
        return [colour for colour in HUES if colour not in thing.own_colours and self._hue_table(thing, colour) is not None]

    def _single(self, thing: Thing, rng: np.random.Generator) -> EmojiScene:
        return EmojiScene("single", (self._placed(thing, rng),), vary_wording(rng, self._name(thing, rng)))

    def _recoloured(self, thing: Thing, rng: np.random.Generator) -> EmojiScene | None:
        if rng.random() < self.mix.own_colour and thing.colour is not None and thing.base == thing.name:
            return EmojiScene("recoloured", (self._placed(thing, rng),), vary_wording(rng, f"{thing.colour} {thing.name}"))
        for colour in rng.permutation(list(HUES)):
            if colour in thing.own_colours or not self.allowed("colour", thing.base, colour) or self._hue_table(thing, colour) is None:
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
                with_relation = rng.random() >= self.mix.and_pair
                # "and" pairs have fixed sides: with random ones a model tends to put both things at one position and merge them.
                relation = pick(rng, READING_ORDER if self.mix.reading_order else list(RELATIONS)) if with_relation else "left"
                wording = pick(rng, RELATIONS[relation]) if with_relation else "and"
                first, second = self._name(thing, rng), self._name(other, rng)
                scene = EmojiScene("pair", self.pair_positions(thing, relation, other, rng), relation_phrase(first, wording, second))
                if not with_relation:
                    return scene
                return replace(
                    scene, relation=relation, hard_negative=relation_phrase(first, pick(rng, RELATIONS[OPPOSITE[relation]]), second)
                )
        return None

    def pair_positions(self, first: Thing, relation: str, second: Thing, rng: np.random.Generator) -> tuple[PlacedThing, PlacedThing]:
        """Place the first thing "left", "right", "above" or "below" the second; their boxes do not overlap."""
        first_centre = 0.25 if relation in ("left", "above") else 0.75
        centred = rng.random() < self.mix.centred
        placed = []
        for thing, centre in ((first, first_centre), (second, 1 - first_centre)):
            side, across = (0.46, 0.5) if centred else (rng.uniform(0.42, 0.49), 0.5 + rng.uniform(-0.1, 0.1))
            x, y = (centre, across) if relation in ("left", "right") else (across, centre)
            placed.append(PlacedThing(thing, x, y, side, not centred and self._mirrored(thing, rng)))
        return placed[0], placed[1]

    def _placed(self, thing: Thing, rng: np.random.Generator, colour: str | None = None) -> PlacedThing:
        """A thing in the centre, or at a random position."""
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
        """The things that pairs may contain."""
        return [thing for thing in self.things if thing.pairable]

    # Rendering

    def portrait(self, name: str, background: str = "white") -> Image.Image:
        """A thing by name, centred on a background colour of PAINTS: RGB (size, size). Raises DaguerreError for an unknown name."""
        named = {each: thing for thing in reversed(self.things) for each in (*thing.other_names, thing.name)}
        if name not in named:
            raise DaguerreError(f"There is no emoji '{name}'.{nearest(name, named)}")
        return self.render(EmojiScene("single", (PlacedThing(named[name], side=0.86),), name, background, PAINTS[background]))

    def render(self, scene: EmojiScene) -> Image.Image:
        """Render a scene as an RGB image (size, size)."""
        image = Image.new("RGB", (self.size, self.size), scene.paint)
        for placed in scene.placed:
            left, top, right, _ = placed.box(self.size)
            thing = self._thing_image(placed.thing, right - left)
            if placed.colour is not None:
                table = self._hue_table(placed.thing, placed.colour)
                assert table is not None, f"cannot recolour {placed.thing.name} to {placed.colour}"
                thing = rotate_hues(thing, table)
            if placed.mirrored:
                thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image.paste(thing, (left, top), thing)
        return image

    def _thing_image(self, thing: Thing, side: int = ARCHIVE_SIZE) -> Image.Image:
        """A thing without background, RGBA (side, side)."""
        full = Image.fromarray(read_images(self.archive)[thing.index], "RGBa")
        return (full if side == ARCHIVE_SIZE else full.resize((side, side), Image.Resampling.BICUBIC)).convert("RGBA")

    def _hue_table(self, thing: Thing, colour: str) -> list[int] | None:
        """The hue table that recolours a thing to a colour; None if the result is not clearly of that colour."""
        if thing.index not in self._hue_tables:
            image = self._thing_image(thing, 64)
            hue = main_hue(image)
            tables = {} if hue is None else {name: hue_rotation(hue, target) for name, target in HUES.items()}
            self._hue_tables[thing.index] = {name: table for name, table in tables.items() if colour_of(rotate_hues(image, table)) == name}
        return self._hue_tables[thing.index].get(colour)
