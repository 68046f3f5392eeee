"""Parse a prompt and evaluate it at each sampling step, as weighted pieces of text.

    a (red:1.3) apple AND a [cat:dog:.5] :0.7

The syntax is that of the Stable Diffusion web UI. `AND` separates parts; each part is one condition, and guidance adds them up (Liu et al.
2022, arXiv:2206.01714, eq. 11). At each step `[a:b:when]` and `[a|b]` are evaluated first, then nested weights are multiplied.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from daguerre.conditioning.syntax import (
    EMPHASIS_FACTOR,
    AlternatingText,
    Break,
    Emphasis,
    Phrase,
    PromptError,
    PromptWarning,
    ScheduledText,
    Text,
    branches,
    format_tree,
    looks_like_weight,
    parse,
    parse_weight,
    split_tags,
)

MAX_WEIGHT = 1e6  # larger weights overflow in half precision

_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r":\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*\Z")


@dataclass(frozen=True)
class WeightedText:
    """A piece of text and its weight; 1 is neutral."""

    text: str
    weight: float


PromptLine = tuple[tuple[WeightedText, ...], ...]  # one part at one step: segments between BREAKs; never empty


def is_empty(line: PromptLine) -> bool:
    """Whether a line holds only white space."""
    return not any(piece.text.strip() for segment in line for piece in segment)


@dataclass(frozen=True)
class PromptPart:
    """One part of a prompt and its guidance weight."""

    phrase: Phrase
    weight: float

    def at(self, step: int, steps: int) -> PromptLine:
        """The weighted text of this part at `step` (from 0) of `steps`."""
        segments: list[list[WeightedText]] = [[]]
        for piece in _evaluate(self.phrase, step, steps):
            if piece is None:
                segments.append([])
            else:
                segments[-1].append(piece)
        return tuple(tuple(_merge_equal_weights(segment)) for segment in segments)


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt: its parts, and warnings about likely mistakes.

    source: the text that positions in warnings refer to, without tags (see `syntax.split_tags`).
    """

    source: str
    parts: tuple[PromptPart, ...]
    warnings: tuple[PromptWarning, ...]

    @classmethod
    def parse(cls, source: str, *, composed: bool = True) -> "Prompt":
        """Parse a prompt; nearly any text is valid.

        Args:
            source: the prompt.
            composed: whether AND separates parts and tags are cut out; False for a negative prompt, in which both are ordinary text.

        Raises:
            PromptError: a weight is not a number, or brackets are nested too deeply.
        """
        source = split_tags(source)[0] if composed else source
        cuts = list(_AND.finditer(source)) if composed else []
        starts = [0, *(cut.end() for cut in cuts)]
        ends = [*(cut.start() for cut in cuts), len(source)]
        parts, warnings = [], []
        for start, end in zip(starts, ends, strict=True):
            text, weight = source[start:end], 1.0
            # Only with AND; otherwise "at 3:30" would have a weight of 30.
            if cuts and (found := _PART_WEIGHT.search(text)):
                text, weight = text[: found.start()].rstrip(), parse_weight(found[1], start + found.start(1))
            phrase, found_warnings = parse(text, start)
            parts.append(PromptPart(phrase, weight))
            warnings += found_warnings
        return cls(source, tuple(parts), tuple(warnings))

    def at(self, step: int, steps: int) -> tuple[PromptLine, ...]:
        """The weighted text of each part at `step` (from 0) of `steps`.

        Raises:
            PromptError: nested weights multiply to more than `MAX_WEIGHT`.
        """
        return tuple(part.at(step, steps) for part in self.parts)

    def tree(self) -> str:
        """The syntax tree as text."""
        names = [f"part {i} of {len(self.parts)}, weight {part.weight:.4g}" for i, part in enumerate(self.parts, 1)]
        trees = [branches(part.phrase) for part in self.parts]
        if len(self.parts) == 1:
            return "\n".join(["prompt", *format_tree(trees[0])])
        return "\n".join(["prompt, composed of parts", *format_tree(list(zip(names, trees, strict=True)))])


def _merge_equal_weights(segment: list[WeightedText]) -> Iterator[WeightedText]:
    """Join adjacent pieces of equal weight, so that [fe|]male is one word."""
    for weight, pieces in groupby(segment, key=lambda piece: piece.weight):
        yield WeightedText("".join(piece.text for piece in pieces), weight)


def _evaluate(phrase: Phrase, step: int, steps: int) -> Iterator[WeightedText | None]:
    """The pieces of a phrase at one step; None stands for BREAK."""
    for node in phrase:
        match node:
            case Text(text):
                yield WeightedText(text, 1.0)
            case Break():
                yield None
            case ScheduledText(before, after):
                yield from _evaluate(before if step < node.first_after(steps) else after, step, steps)
            case AlternatingText(options):
                yield from _evaluate(options[step % len(options)], step, steps)
            case Emphasis(inner, factor, at):
                pieces = list(_evaluate(inner, step, steps))
                if isinstance(factor, tuple):
                    written = "".join(piece.text for piece in _evaluate(factor[1:], step, steps) if piece)
                    number = looks_like_weight(written)
                    # If it evaluates to words instead of a number, the colon and the words are text, as in (red:blue).
                    pieces += [] if number else _evaluate(factor, step, steps)
                    factor = parse_weight(number, at) if number else EMPHASIS_FACTOR
                yield from (_scale_weight(piece, factor, at) for piece in pieces)


def _scale_weight(piece: WeightedText | None, factor: float, at: int) -> WeightedText | None:
    if piece is None:
        return None
    if abs(piece.weight * factor) > MAX_WEIGHT:
        raise PromptError(at, f"the weights multiply to {piece.weight * factor:g}; keep the product below {MAX_WEIGHT:g}.")
    return WeightedText(piece.text, piece.weight * factor)
