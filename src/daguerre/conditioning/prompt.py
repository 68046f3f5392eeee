"""A prompt and what it says at each step: weighted pieces of text, in one or several parts that are sampled together.

    a (red:1.3) apple AND a [cat:dog:.5] :0.7

The language is the Stable Diffusion web UI's. A part is one condition; `AND` joins parts by composition (Liu et al. 2022,
arXiv:2206.01714, eq. 11). `[a:b:when]` and `[a|b]` are settled at each step, then weights are multiplied from the inside out.
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
)

MAX_WEIGHT = 1e6  # a weight beyond this leaves half precision nothing to multiply

_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r":\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*\Z")


@dataclass(frozen=True)
class WeightedText:
    """Text of one weight; 1 is neutral."""

    text: str
    weight: float


PromptLine = tuple[tuple[WeightedText, ...], ...]  # what one part says at one step: stretches of pieces, apart by BREAK; never empty


def is_empty(line: PromptLine) -> bool:
    """Whether a line holds no more than white space."""
    return not any(piece.text.strip() for stretch in line for piece in stretch)


@dataclass(frozen=True)
class PromptPart:
    """One part of a prompt and the weight of its guidance."""

    part: Phrase
    weight: float

    def at(self, step: int, steps: int) -> PromptLine:
        """What this part says at `step`, counted from 0, of so many steps."""
        stretches: list[list[WeightedText]] = [[]]
        for piece in _evaluate(self.part, step, steps):
            if piece is None:
                stretches.append([])
            else:
                stretches[-1].append(piece)
        return tuple(tuple(_joined(stretch)) for stretch in stretches)


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt: its voices, and the slips that its writer may want to see."""

    source: str
    parts: tuple[PromptPart, ...]
    warnings: tuple[PromptWarning, ...]

    @classmethod
    def parse(cls, source: str, *, composed: bool = True) -> "Prompt":
        """Read a prompt; any text is one.

        Args:
            source: what the user wrote.
            composed: False for a negative prompt, which is one part; AND is then a word.

        Raises:
            PromptError: for a weight that is no number and for brackets nested too deep.
        """
        cuts = list(_AND.finditer(source)) if composed else []
        starts = [0, *(cut.end() for cut in cuts)]
        ends = [*(cut.start() for cut in cuts), len(source)]
        voices, slips = [], []
        for start, end in zip(starts, ends, strict=True):
            text, factor = source[start:end], 1.0
            # Only beside an AND: else "at 3:30" would be guided thirtyfold.
            if cuts and (found := _PART_WEIGHT.search(text)):
                text, factor = text[: found.start()].rstrip(), parse_weight(found[1], start + found.start(1))
            part, noticed = parse(text, start)
            voices.append(PromptPart(part, factor))
            slips += noticed
        return cls(source, tuple(voices), tuple(slips))

    def at(self, step: int, steps: int) -> tuple[PromptLine, ...]:
        """What each voice says at `step`, counted from 0, of so many steps.

        Raises:
            PromptError: if nested weights multiply beyond what can be computed.
        """
        return tuple(voice.at(step, steps) for voice in self.parts)

    def tree(self) -> str:
        """The syntax tree, printed."""
        names = [f"part {i} of {len(self.parts)}, weight {voice.weight:.4g}" for i, voice in enumerate(self.parts, 1)]
        trees = [branches(voice.part) for voice in self.parts]
        if len(self.parts) == 1:
            return "\n".join(["prompt", *format_tree(trees[0])])
        return "\n".join(["prompt, its parts sampled together", *format_tree(list(zip(names, trees, strict=True)))])


def _joined(stretch: list[WeightedText]) -> Iterator[WeightedText]:
    """Neighbours of one weight are one text, so that [fe|]male is one word."""
    for factor, pieces in groupby(stretch, key=lambda piece: piece.weight):
        yield WeightedText("".join(piece.text for piece in pieces), factor)


def _evaluate(part: Phrase, step: int, steps: int) -> Iterator[WeightedText | None]:
    """The pieces of a part at one step; None is a BREAK."""
    for node in part:
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
                    # A number may turn out to be words; then colon and words are text, as they are in (red:blue).
                    pieces += [] if number else _evaluate(factor, step, steps)
                    factor = parse_weight(number, at) if number else EMPHASIS_FACTOR
                yield from (_scale_weight(piece, factor, at) for piece in pieces)


def _scale_weight(piece: WeightedText | None, factor: float, at: int) -> WeightedText | None:
    if piece is None:
        return None
    if abs(piece.weight * factor) > MAX_WEIGHT:
        raise PromptError(at, f" the weights multiply to {piece.weight * factor:g}; stay under {MAX_WEIGHT:g}.")
    return WeightedText(piece.text, piece.weight * factor)
