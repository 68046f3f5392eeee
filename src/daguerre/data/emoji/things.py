"""The objects that emoji show: their names, and which changes keep their captions true."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from daguerre.data.colours import colour_of
from daguerre.data.emoji.archive import EmojiEntry, read_images, read_index
from daguerre.data.emoji.names import COLOUR_WORD, EmojiName, thing_names

# Text, clock hands, moon phases, maps and names with a direction: their mirror image has another meaning.
_DIRECTIONAL = re.compile(
    r".*\b(left|right|leftwards|rightwards|left-facing|right-facing|clock|watch|stopwatch|moon|globe|map|arrow|medal|joker|banknote|calendar|"
    r"newspaper|e-mail|taxi|police|ambulance|bank|hotel|hospital|store|envelope|note|notes|score|card|money|money-mouth|points|ZZZ|sleeping|"
    r"symbols|pager|radio|fax|8 ball|slot|dragon|chart|coin|keyboard|quarter|dvd|label|scroll|page|tabs|identification)\b.*"
)
_DIRECTIONAL_GROUPS = ("Symbols", "Flags")
_SYMMETRIC = ("geometric", "heart")
# Recognisable when two share a small image.
_PAIRABLE_GROUPS = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
_NOT_PAIRABLE = ("time", "emotion", "place-map", "sky & weather", "place-geographic", "place-other", "hotel")


@dataclass(frozen=True)
class Thing:
    """One emoji: index in the archive, names, and the allowed changes."""

    index: int
    name: str
    other_names: tuple[str, ...]
    base: str  # the name without its colour word, for recoloured images
    group: str
    subgroup: str
    colour: str | None  # its original colour, if one dominates
    own_colours: frozenset[str]  # original colours of all things with this base name
    mirrorable: bool
    recolourable: bool
    pairable: bool


@lru_cache(maxsize=2)
def read_things(archive: Path) -> tuple[Thing, ...]:
    """All things of an archive, in its order."""
    entries, images = read_index(archive), read_images(archive)
    names = thing_names(entries)
    colours = [colour_of(Image.fromarray(image, "RGBa").convert("RGBA")) for image in images[:, ::3, ::3]]
    own: dict[str, set[str]] = {}
    for name, colour in zip(names, colours, strict=True):
        word = COLOUR_WORD.search(name.main)
        own.setdefault(name.base, set()).update({word[1].replace("grey", "gray")} if word else set(), {colour} if colour else set())
    return tuple(_thing(i, e, n, c, frozenset(own[n.base])) for i, (e, n, c) in enumerate(zip(entries, names, colours, strict=True)))


def _thing(index: int, entry: EmojiEntry, name: EmojiName, colour: str | None, own: frozenset[str]) -> Thing:
    directional = (
        entry.group in _DIRECTIONAL_GROUPS or entry.subgroup in ("time", "alphanum") or _DIRECTIONAL.fullmatch(name.main) is not None
    )
    person = entry.group == "People & Body" and entry.subgroup.startswith(("person", "family"))
    paired = entry.group in _PAIRABLE_GROUPS and entry.subgroup not in _NOT_PAIRABLE
    return Thing(
        index=index,
        name=name.main,
        other_names=name.others,
        base=name.base,
        group=entry.group,
        subgroup=entry.subgroup,
        colour=colour,
        own_colours=own,
        mirrorable=entry.subgroup in _SYMMETRIC or not directional,
        recolourable=entry.group != "Flags" and not person and name.main != "leafy green",
        pairable=(paired or entry.subgroup == "geometric") and len(name.main.split()) <= 4,
    )
