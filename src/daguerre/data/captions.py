"""Varied wording: the same image said in the ways people would type it."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from daguerre.data.emoji.names import with_article

# Wordings of one phrase: {bare} is "red apple", {phrase} is "a red apple". Half say it plainly.
_WORDINGS = (
    ("{phrase}", 0.4),
    ("{bare}", 0.25),
    ("a picture of {phrase}", 0.12),
    ("an emoji of {phrase}", 0.08),
    ("emoji of {phrase}", 0.05),
    ("{bare} emoji", 0.05),
    ("a drawing of {phrase}", 0.05),
)
_WEIGHTS = np.cumsum([weight for _, weight in _WORDINGS])
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
IN_ORDER = ["left", "above"]  # those that name things as one reads
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_T = TypeVar("_T")


def pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """One of the choices, each as likely as the next."""
    return choices[int(rng.integers(len(choices)))]


def vary_wording(rng: np.random.Generator, name: str, after: str = "") -> str:
    """Say a name, as in "a picture of a red apple"; `after` follows it, as in " on a green background"."""
    wording = _WORDINGS[int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1]))][0]
    return wording.format(bare=name, phrase=with_article(name)) + after


def article(words: str) -> str:
    """Put "a" or "an" before plain lower-case words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(noun: str) -> str:
    """More than one of it: "crosses", "stars"."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def on_background(colour: str) -> str:
    """The end of a caption: " on a green background"."""
    return f" on {article(colour)} background"


def relation_phrase(first: str, relation: str, second: str) -> str:
    """Two names with articles and a wording of RELATIONS between: "a cat to the left of a pizza"."""
    return f"{with_article(first)} {relation} {with_article(second)}"
