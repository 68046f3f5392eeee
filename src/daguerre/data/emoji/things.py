"""The things that emoji show: their names, and what may be done to them without making the caption a lie."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from daguerre.data.colours import colour_of
from daguerre.data.emoji.archive import EmojiEntry, read_images, read_index
from daguerre.data.emoji.names import COLOUR_WORD, EmojiName, thing_names

# Text, hands of clocks, phases, maps and names with a direction: their mirror image is something else.
_HANDED = re.compile(
    r".*\b(left|right|leftwards|rightwards|left-facing|right-facing|clock|watch|stopwatch|moon|globe|map|arrow|medal|joker|banknote|calendar|"
    r"newspaper|e-mail|taxi|police|ambulance|bank|hotel|hospital|store|envelope|note|notes|score|card|money|money-mouth|points|ZZZ|sleeping|"
    r"symbols|pager|radio|fax|8 ball|slot|dragon|chart|coin|keyboard|quarter|dvd|label|scroll|page|tabs|identification)\b.*"
)
_HANDED_GROUPS = ("Symbols", "Flags")
_ONE_PIECE = ("geometric", "heart")
# What two of can stand side by side in a small image and still be told.
_PAIRABLE_GROUPS = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
_NOT_PAIRABLE = ("time", "emotion", "place-map", "sky & weather", "place-geographic", "place-other", "hotel")


@dataclass(frozen=True)
class Thing:
    """One emoji: place in the archive, names, and what may be changed about it."""

    index: int
    name: str
    other_names: tuple[str, ...]
    base: str  # the name without its colour word: what it is called when its colour changes
    group: str
    subgroup: str
    colour: str | None  # the word for its own colour, where one dominates
    own_colours: frozenset[str]  # colours in which things of this base name come by nature
    mirrorable: bool
    recolourable: bool
    pairable: bool


@lru_cache(maxsize=2)
def read_things(archive: Path) -> tuple[Thing, ...]:
    """Every thing of an archive, in its order."""
    entries, images = read_index(archive), read_images(archive)
    names = thing_names(entries)
    colours = [colour_of(Image.fromarray(image, "RGBa").convert("RGBA")) for image in images[:, ::3, ::3]]
    own: dict[str, set[str]] = {}
    for name, colour in zip(names, colours, strict=True):
        word = COLOUR_WORD.search(name.main)
        own.setdefault(name.base, set()).update({word[1].replace("grey", "gray")} if word else set(), {colour} if colour else set())
    return tuple(_thing(i, e, n, c, frozenset(own[n.base])) for i, (e, n, c) in enumerate(zip(entries, names, colours, strict=True)))


def _thing(index: int, entry: EmojiEntry, name: EmojiName, colour: str | None, own: frozenset[str]) -> Thing:
    handed = entry.group in _HANDED_GROUPS or entry.subgroup in ("time", "alphanum") or _HANDED.fullmatch(name.main) is not None
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
        mirrorable=entry.subgroup in _ONE_PIECE or not handed,
        recolourable=entry.group != "Flags" and not person and name.main != "leafy green",
        pairable=(paired or entry.subgroup == "geometric") and len(name.main.split()) <= 4,
    )
