"""Caption variants: the same content as different people word it.

People write "a red apple.", "Draw a red apple, please" or "a photo of a red apple" and mean "a red apple". A variant changes articles, adds
a style word, a request, words that no caption has, punctuation, and changes the letter case; it never changes what the caption says. It
is a function of the caption and a random generator, so a training batch stays a function of (seed, sample, step).
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from daguerre.data.captions import article, pick

UNCHANGED = 0.35  # share of the captions that stay as they are
# Share of the other captions with each change; a variant may have several.
_ARTICLES, _STYLE, _REQUEST, _MADE_UP, _PUNCTUATION, _CASE = 0.3, 0.4, 0.35, 0.25, 0.5, 0.3
STYLES = (
    "photo", "picture", "drawing", "image", "painting", "illustration", "icon", "cartoon", "emoji", "render", "sticker", "watercolor",
    "portrait", "clipart", "artwork",
)  # fmt: skip
_STYLE_FORMS = ("{a_style} of {phrase}", "{style} of {phrase}", "{bare} {style}", "{phrase}, {style}")
VERBS = (
    "draw", "draw me", "show", "show me", "make", "make me", "create", "generate", "give me", "paint", "paint me", "design", "kindly draw",
)  # fmt: skip
_REQUEST_FORMS = (
    "{verb} {phrase}", "please {verb} {phrase}", "{verb} {phrase} please", "{verb} {phrase}, please", "can you {verb} {phrase}",
    "could you please {verb} {phrase}", "would you {verb} {phrase}", "{verb} {phrase} for me", "i want {phrase}", "i need {phrase}",
    "{phrase}, please", "{phrase} please", "please, {phrase}", "{phrase}, {verb}", "{phrase}, thanks",
    "{phrase}, thank you", "i {verb} to {verb} {phrase}",
)  # fmt: skip
# All words that a variant may add, apart from made-up ones.
PHRASES = (*STYLES, *VERBS, *(form.format_map(defaultdict(str)) for form in (*_STYLE_FORMS, *_REQUEST_FORMS)))
_ONSETS = (
    "b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "br", "ch", "cl", "cr", "dr", "fl", "gr", "kn", "pl",
    "sk", "sp", "st", "tr", "th",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou", "y")
_CODAS = ("", "n", "r", "s", "t", "l", "d", "m", "ck", "st", "nd", "ng", "sh", "ly", "er", "ed", "tch")
_PUNCTUATED = ("{}.", "{}.", "{}.", "{}!", "{}?", "{},", "{}...", "{}!!", "{} .", '"{}"', "'{}'")
_CASES = (str.upper, str.title, str.capitalize, str.lower)

_LEADING_ARTICLE = re.compile(r"^(?:a|an|the) ")
_ANY_ARTICLE = re.compile(r"\b(?:a|an|the) ")
_STYLED = re.compile(rf"(?:an? )?(?:{'|'.join(STYLES)}) of (?P<before>.+)|(?P<after>.+),? (?:{'|'.join(STYLES)})")


def vary_caption(rng: np.random.Generator, caption: str) -> str:
    """The caption, or a variant of it: "draw a red apple, please" for "a red apple". The empty caption stays empty."""
    if not caption or rng.random() < UNCHANGED:
        return caption
    words = without_style(caption)
    for share, change in ((_ARTICLES, _other_articles), (_STYLE, _with_style), (_MADE_UP, _with_made_up_word), (_REQUEST, _as_request)):
        if rng.random() < share:
            words = change(rng, words)
    if rng.random() < _PUNCTUATION:
        words = pick(rng, _PUNCTUATED).format(words)
    return pick(rng, _CASES)(words) if rng.random() < _CASE else words


def without_style(caption: str) -> str:
    """A caption without the word for its style: "a red apple" for "a picture of a red apple"."""
    match = _STYLED.fullmatch(caption)
    return caption if match is None else match["before"] or match["after"].removesuffix(",")


def _other_articles(rng: np.random.Generator, words: str) -> str:
    """Without articles, or with "the" instead of the first."""
    return _ANY_ARTICLE.sub("", words) if rng.random() < 0.6 else _LEADING_ARTICLE.sub("the ", words)


def _with_style(rng: np.random.Generator, words: str) -> str:
    style = _known_or_made_up(rng, STYLES)
    return pick(rng, _STYLE_FORMS).format(phrase=words, bare=_LEADING_ARTICLE.sub("", words), style=style, a_style=article(style))


def _as_request(rng: np.random.Generator, words: str) -> str:
    return pick(rng, _REQUEST_FORMS).format(phrase=words, verb=_known_or_made_up(rng, VERBS))


def _with_made_up_word(rng: np.random.Generator, words: str) -> str:
    """One or two made-up words at random positions."""
    parts = words.split(" ")
    for _ in range(int(rng.integers(1, 3))):
        parts.insert(int(rng.integers(len(parts) + 1)), _made_up_word(rng))
    return " ".join(parts)


def _known_or_made_up(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return _made_up_word(rng) if rng.random() < _MADE_UP else pick(rng, choices)


def _made_up_word(rng: np.random.Generator) -> str:
    """Two or three syllables, such as "kindlest": it stands for all words that no caption has."""
    return "".join(f"{pick(rng, _ONSETS)}{pick(rng, _VOWELS)}{pick(rng, _CODAS)}" for _ in range(int(rng.integers(2, 4))))
