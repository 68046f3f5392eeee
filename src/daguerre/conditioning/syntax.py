"""The prompt language's grammar, read into a tree.

    part      := item*
    item      := text | BREAK | '(' part ')' | '(' part ':' number ')' | '[' part ']' | switch | alternate
    switch    := '[' part ':' part ':' number ']' | '[' part ':' number ']'
    alternate := '[' part ('|' part)+ ']'

A backslash takes any sign as it is. What fits no rule is text: every prompt has a meaning, and what looks like a slip is noted with
its place. Brackets nest; one that is never closed reaches to the end of what holds it.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from daguerre.errors import DaguerreError

EMPHASIS_FACTOR = 1.1  # what a pair of brackets without a number multiplies or divides by
MAX_DEPTH = 64

_LEXEMES = re.compile(r"\\.|\\\Z|[()\[\]|:]|[^\\()\[\]|:]+", re.DOTALL)
_BREAK = re.compile(r"\bBREAK\b")
_WEIGHT = re.compile(r"\s*([+-]?[.\d]+)\s*")
_WHEN = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")


class PromptError(DaguerreError):
    """A prompt that has no meaning; `at` is the place, counted from 0, which the message counts from 1."""

    def __init__(self, at: int, says: str) -> None:
        super().__init__(f"At character {at + 1} of the prompt{says}")
        self.at = at


@dataclass(frozen=True)
class Text:
    """Words as they are, escapes resolved; `at` is the place in the prompt, counted from 0, here and below."""

    text: str
    at: int


@dataclass(frozen=True)
class Break:
    """What follows begins a new chunk."""

    at: int


@dataclass(frozen=True)
class Emphasis:
    """A part whose weight is multiplied by a number, or by a number that is itself scheduled: `(word:[1:1.5:.5])`."""

    part: "Phrase"
    weight: "float | Phrase"
    at: int


@dataclass(frozen=True)
class ScheduledText:
    """`[before:after:when]`: the first `when` steps say one thing, the others another; a share of all steps where `when` has a point."""

    before: "Phrase"
    after: "Phrase"
    when: str
    at: int

    def first_after(self, steps: int) -> int:
        """The first of so many steps, counted from 0, that says `after`."""
        number = float(self.when) * (steps if "." in self.when else 1)
        return int(min(max(number, 0), steps))


@dataclass(frozen=True)
class AlternatingText:
    """`[a|b]`: the options in turn, one each step."""

    options: tuple["Phrase", ...]
    at: int


SyntaxNode = Text | Break | Emphasis | ScheduledText | AlternatingText
Phrase = tuple[SyntaxNode, ...]


@dataclass(frozen=True)
class PromptWarning:
    """Something that has a meaning, but perhaps not the one that was wanted."""

    at: int
    message: str


@dataclass
class _OpenBracket:
    """A bracket that waits for its end, with what it has gathered so far, split at its own colons and bars."""

    bracket: str
    at: int
    segments: list[list[SyntaxNode]] = field(default_factory=lambda: [[]])
    marks: list[tuple[str, int]] = field(default_factory=list)

    def add(self, *nodes: SyntaxNode) -> None:
        self.segments[-1].extend(nodes)

    def literal(self, segments: Sequence[Sequence[SyntaxNode]] | None = None) -> Phrase:
        """The segments (all unless told) with their colons and bars as text again."""
        segments = self.segments if segments is None else segments
        nodes = list(segments[0])
        for (mark, at), segment in zip(self.marks, segments[1:], strict=False):  # a schedule leaves its last segment and mark out
            nodes += [Text(mark, at), *segment]
        return tuple(nodes)


def parse(source: str, start: int = 0) -> tuple[Phrase, tuple[PromptWarning, ...]]:
    """Read one part (a prompt without AND), found at `start` of the whole prompt, into its tree and the slips noticed on the way.

    Raises:
        PromptError: for a weight that is made of digits and points and is no number, and for brackets nested too deep.
    """
    stack, slips = [_OpenBracket("", start)], []
    for lexeme in _LEXEMES.finditer(source):
        at, text = start + lexeme.start(), lexeme[0]
        if text in ("(", "["):
            if len(stack) > MAX_DEPTH:
                raise PromptError(at, f" brackets are nested deeper than {MAX_DEPTH}; take some away.")
            stack.append(_OpenBracket(text, at))
        elif text in (")", "]"):
            opener = "(" if text == ")" else "["
            if opener not in (frame.bracket for frame in stack):
                slips.append(PromptWarning(at, f"'{text}' closes nothing and is read as text; write '\\{text}' if that is meant"))
                stack[-1].add(Text(text, at))
                continue
            while stack[-1].bracket != opener:
                slips.append(_close_unclosed(stack))
            frame = stack.pop()
            stack[-1].add(_round(frame, source, start) if text == ")" else _square(frame))
        elif text in (":", "|") and len(stack) > 1:
            stack[-1].marks.append((text, at))
            stack[-1].segments.append([])
        else:
            stack[-1].add(*_words(text, at))
    while len(stack) > 1:
        slips.append(_close_unclosed(stack))
    return stack[0].literal(), tuple(sorted(slips, key=lambda slip: slip.at))


def _words(text: str, at: int) -> Iterator[SyntaxNode]:
    """Plain text, cut at BREAK; an escaped sign loses its backslash, a backslash at the very end vanishes."""
    if text.startswith("\\"):
        if len(text) > 1:
            yield Text(text[1:], at)
        return
    end = 0
    for found in _BREAK.finditer(text):
        if found.start() > end:
            yield Text(text[end : found.start()], at + end)
        yield Break(at + found.start())
        end = found.end()
    if end < len(text):
        yield Text(text[end:], at + end)


def _close_unclosed(stack: list[_OpenBracket]) -> PromptWarning:
    """A bracket without its end works to the end of what holds it."""
    frame = stack.pop()
    stack[-1].add(Emphasis(frame.literal(), EMPHASIS_FACTOR if frame.bracket == "(" else 1 / EMPHASIS_FACTOR, frame.at))
    return PromptWarning(frame.at, f"'{frame.bracket}' is never closed; write '\\{frame.bracket}' if the sign itself is meant")


def _round(frame: _OpenBracket, source: str, start: int) -> Emphasis:
    """`(part)` or `(part:number)`; the number is what follows the last colon, and may itself change from step to step."""
    if frame.marks and frame.marks[-1][0] == ":":
        part, last = frame.literal(frame.segments[:-1]), tuple(frame.segments[-1])
        written = _plain(last)
        if written is None and all(isinstance(node, Text | ScheduledText | AlternatingText) for node in last):
            return Emphasis(part, (Text(":", frame.marks[-1][1]), *last), frame.at)
        if written is not None and (number := looks_like_weight(written)):
            near = source[frame.at - start : frame.at - start + 30]
            return Emphasis(part, parse_weight(number, frame.marks[-1][1] + 1, near), frame.at)
    return Emphasis(frame.literal(), EMPHASIS_FACTOR, frame.at)


def _square(frame: _OpenBracket) -> SyntaxNode:
    """A switch, an alternate, or else a part of less weight."""
    kinds = {mark for mark, _ in frame.marks}
    if kinds == {"|"}:
        return AlternatingText(tuple(tuple(segment) for segment in frame.segments), frame.at)
    if kinds == {":"} and len(frame.marks) <= 2:
        *said, last = (tuple(segment) for segment in frame.segments)
        written = _plain(last)
        if written is not None and (number := _WHEN.fullmatch(written)):
            before, after = said if len(said) == 2 else ((), said[0])
            return ScheduledText(before, after, number[1], frame.at)
    return Emphasis(frame.literal(), 1 / EMPHASIS_FACTOR, frame.at)


def _plain(part: Sequence[SyntaxNode]) -> str | None:
    """The text of a part that is nothing but text."""
    return "".join(node.text for node in part if isinstance(node, Text)) if all(isinstance(node, Text) for node in part) else None


def looks_like_weight(text: str) -> str | None:
    """What stands where a weight may stand, if it is made of digits and points."""
    found = _WEIGHT.fullmatch(text)
    return found[1] if found and any(sign.isdecimal() for sign in found[1]) else None


def parse_weight(written: str, at: int, near: str = "") -> float:
    """The number that someone wrote.

    Raises:
        PromptError: if digits and points make no finite number.
    """
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        shown = f", in {near!r}" if near else ""
        raise PromptError(at, f"{shown}, {written[:20]!r} is no number; write a weight like (word:1.3).")
    return number


Branch = tuple[str, list["Branch"]]  # a printed node and what hangs below it


def branches(part: Phrase) -> list[Branch]:
    """A part as a tree of words for people; neighbouring texts are one, and white space alone is left out."""
    found: list[Branch] = []
    for plain, nodes in groupby(part, lambda node: isinstance(node, Text)):
        if plain:
            text = "".join(node.text for node in nodes if isinstance(node, Text))
            found += [(repr(text), [])] if text.strip() else []
        else:
            found += map(_branch, nodes)
    return found or [("nothing", [])]


def _branch(node: SyntaxNode) -> Branch:
    match node:
        case Text(text):
            return repr(text), []
        case Break():
            return "BREAK: what follows begins a new window", []
        case Emphasis(inner, float(factor)):
            return f"weight × {factor:.4g}", branches(inner)
        case Emphasis(inner, scheduled):
            assert isinstance(scheduled, tuple)
            return "weight × a number that changes", [("the number", branches(scheduled[1:])), *branches(inner)]
        case ScheduledText(before, after, when):
            first = f"for the first {when} of all steps" if "." in when else f"for the first {when} steps"
            return "changes once", [(first, branches(before)), ("then", branches(after))]
        case AlternatingText(options):
            return "changes at every step", [(f"{i} of {len(options)}", branches(option)) for i, option in enumerate(options, 1)]


def format_tree(tree: Sequence[Branch], indent: str = "") -> Iterator[str]:
    """The lines of a printed tree."""
    for i, (says, below) in enumerate(tree, 1):
        last = i == len(tree)
        yield f"{indent}{'└─ ' if last else '├─ '}{says}"
        yield from format_tree(below, indent + ("   " if last else "│  "))


def caret_message(source: str, at: int, says: str, around: int = 60) -> str:
    """Two lines: the place in a prompt, with what is near it, and below it a caret and what there is to say."""
    start = max(at - around // 2, 0)
    near = re.sub(r"\s", " ", source[start : start + around])
    before, after = "… " if start else "", " …" if start + around < len(source) else ""
    return f"{before}{near}{after}\n{' ' * (len(before) + _columns(near[: at - start]))}^ {says}"


def _columns(text: str) -> int:
    """How many columns a terminal gives a text: none to what combines, two to wide signs."""
    return sum(0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in "WF") for sign in text)
