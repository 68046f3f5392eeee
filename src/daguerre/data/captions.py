"""Caption templates: the same content in different wordings."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from daguerre.data.emoji.names import with_article

# Templates with their probabilities: {bare} is "red apple", {phrase} is "a red apple".
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
READING_ORDER = ["left", "above"]  # relations whose first thing comes first from left to right or from top to bottom
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_T = TypeVar("_T")


def pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """A uniformly random choice."""
    return choices[int(rng.integers(len(choices)))]


def vary_wording(rng: np.random.Generator, name: str, after: str = "") -> str:
    """A name in a random template, such as "a picture of a red apple", followed by `after`, such as " on a green background"."""
    wording = _WORDINGS[int(np.searchsorted(_WEIGHTS, rng.random() * _WEIGHTS[-1]))][0]
    return wording.format(bare=name, phrase=with_article(name)) + after


def article(words: str) -> str:
    """Prefix lower-case words with "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(noun: str) -> str:
    """The plural: "crosses", "stars"."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def on_background(colour: str) -> str:
    """A caption suffix: " on a green background"."""
    return f" on {article(colour)} background"


def relation_phrase(first: str, relation: str, second: str) -> str:
    """Two names with articles, joined by a wording of RELATIONS: "a cat to the left of a pizza"."""
    return f"{with_article(first)} {relation} {with_article(second)}"
