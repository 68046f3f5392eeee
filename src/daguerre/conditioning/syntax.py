"""The grammar of the prompt language, and its parser.

    phrase      := item*
    item        := text | BREAK | '(' phrase ')' | '(' phrase ':' number ')' | '[' phrase ']' | scheduled | alternating
    scheduled   := '[' phrase ':' phrase ':' number ']' | '[' phrase ':' number ']'
    alternating := '[' phrase ('|' phrase)+ ']'

A backslash escapes the next character. Whatever matches no rule is text, so nearly every prompt is valid; likely mistakes give warnings
with their position. Brackets nest. A bracket that is never closed ends where its enclosing bracket or the prompt ends.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from daguerre.errors import DaguerreError

EMPHASIS_FACTOR = 1.1  # (text) multiplies the weight by this, [text] divides by it
MAX_DEPTH = 64

TAG = re.compile(r"<(\w+):([^<>]+)>")  # <lora:ink:0.8> is no text; negative prompts have no tags
_LEXEMES = re.compile(r"\\.|\\\Z|[()\[\]]|[|:]+|[^\\()\[\]|:]+", re.DOTALL)
_BREAK = re.compile(r"\bBREAK\b")
_WEIGHT = re.compile(r"\s*([+-]?[.\d]+)\s*")
_WHEN = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")


class PromptError(DaguerreError):
    """A prompt that cannot be parsed; `at` is the character's index from 0, the message counts from 1."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(f"Character {at + 1} of the prompt: {message}")
        self.at = at


@dataclass(frozen=True)
class Text:
    """Literal text without its escapes; `at`, here and below, is the character's index in the prompt, from 0."""

    text: str
    at: int


@dataclass(frozen=True)
class Break:
    """The following text starts a new chunk."""

    at: int


@dataclass(frozen=True)
class Emphasis:
    """A phrase whose weight is multiplied by a number, which may itself be scheduled: `(word:[1:1.5:.5])`."""

    phrase: "Phrase"
    weight: "float | Phrase"
    at: int


@dataclass(frozen=True)
class ScheduledText:
    """`[before:after:when]`: `before` for the first `when` steps, then `after`. With a decimal point `when` is a fraction of all steps."""

    before: "Phrase"
    after: "Phrase"
    when: str
    at: int

    def first_after(self, steps: int) -> int:
        """The first step (from 0) that uses `after`."""
        number = float(self.when) * (steps if "." in self.when else 1)
        return int(min(max(number, 0), steps))


@dataclass(frozen=True)
class AlternatingText:
    """`[a|b]`: cycles through the options, one per step."""

    options: tuple["Phrase", ...]
    at: int


SyntaxNode = Text | Break | Emphasis | ScheduledText | AlternatingText
Phrase = tuple[SyntaxNode, ...]


@dataclass(frozen=True)
class PromptWarning:
    """Something that is valid but probably not what the user meant."""

    at: int
    message: str


@dataclass
class _OpenBracket:
    """A bracket that is not closed yet, with its content so far, split at its own colons and bars (`separators`)."""

    bracket: str
    at: int
    segments: list[list[SyntaxNode]] = field(default_factory=lambda: [[]])
    separators: list[tuple[str, int]] = field(default_factory=list)

    def add(self, *nodes: SyntaxNode) -> None:
        self.segments[-1].extend(nodes)

    def literal(self, segments: Sequence[Sequence[SyntaxNode]] | None = None) -> Phrase:
        """The segments (all by default) with their colons and bars as literal text."""
        segments = self.segments if segments is None else segments
        nodes = list(segments[0])
        for (separator, at), segment in zip(self.separators, segments[1:], strict=False):  # `segments` may leave the last ones out
            nodes += [Text(separator, at), *segment]
        return tuple(nodes)


def parse(source: str, start: int = 0) -> tuple[Phrase, tuple[PromptWarning, ...]]:
    """Parse one part of a prompt (without AND) that begins at index `start` of the prompt; returns its syntax tree and warnings.

    Raises:
        PromptError: a weight made of digits and points is not a number, or brackets are nested deeper than `MAX_DEPTH`.
    """
    stack, warnings = [_OpenBracket("", start)], []
    for lexeme in _LEXEMES.finditer(source):
        at, text = start + lexeme.start(), lexeme[0]
        if text in ("(", "["):
            if len(stack) > MAX_DEPTH:
                raise PromptError(at, f"brackets are nested deeper than {MAX_DEPTH}; remove some.")
            stack.append(_OpenBracket(text, at))
        elif text in (")", "]"):
            opener = "(" if text == ")" else "["
            if opener not in (frame.bracket for frame in stack):
                warnings.append(PromptWarning(at, f"'{text}' has no matching '{opener}' and is taken as text; write '\\{text}' instead"))
                stack[-1].add(Text(text, at))
                continue
            while stack[-1].bracket != opener:
                warnings.append(_close_unclosed(stack))
            frame = stack.pop()
            stack[-1].add(_parentheses(frame, source, start) if text == ")" else _square_brackets(frame))
        elif text[0] in ":|" and len(stack) > 1:
            stack[-1].separators += [(separator, at + i) for i, separator in enumerate(text)]
            stack[-1].segments += [[] for _ in text]
        else:
            stack[-1].add(*_plain_text(text, at))
    while len(stack) > 1:
        warnings.append(_close_unclosed(stack))
    return stack[0].literal(), tuple(sorted(warnings, key=lambda warning: warning.at))


def _plain_text(text: str, at: int) -> Iterator[SyntaxNode]:
    """Plain text, split at BREAK. An escaped character loses its backslash; a single backslash at the end is removed."""
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
    """Close the innermost bracket, which has no closing one, and return a warning."""
    frame = stack.pop()
    stack[-1].add(Emphasis(frame.literal(), EMPHASIS_FACTOR if frame.bracket == "(" else 1 / EMPHASIS_FACTOR, frame.at))
    return PromptWarning(frame.at, f"'{frame.bracket}' is never closed; write '\\{frame.bracket}' for the character itself")


def _parentheses(frame: _OpenBracket, source: str, start: int) -> Emphasis:
    """`(phrase)` or `(phrase:number)`; the number follows the last colon and may itself be scheduled."""
    if frame.separators and frame.separators[-1][0] == ":":
        phrase, last, colon = frame.literal(frame.segments[:-1]), tuple(frame.segments[-1]), frame.separators[-1][1]
        written = _literal_text(last)
        if written is None and all(isinstance(node, Text | ScheduledText | AlternatingText) for node in last):
            return Emphasis(phrase, (Text(":", colon), *last), frame.at)
        if written is not None and (number := looks_like_weight(written)):
            context = source[frame.at - start : frame.at - start + 30]
            return Emphasis(phrase, parse_weight(number, colon + 1, context), frame.at)
    return Emphasis(frame.literal(), EMPHASIS_FACTOR, frame.at)


def _square_brackets(frame: _OpenBracket) -> SyntaxNode:
    """Scheduled text, alternating text, or otherwise a phrase of less weight."""
    kinds = {separator for separator, _ in frame.separators}
    if kinds == {"|"}:
        return AlternatingText(tuple(tuple(segment) for segment in frame.segments), frame.at)
    if kinds == {":"} and len(frame.separators) <= 2:
        *phrases, last = (tuple(segment) for segment in frame.segments)
        written = _literal_text(last)
        if written is not None and (number := _WHEN.fullmatch(written)):
            before, after = phrases if len(phrases) == 2 else ((), phrases[0])
            return ScheduledText(before, after, number[1], frame.at)
    return Emphasis(frame.literal(), 1 / EMPHASIS_FACTOR, frame.at)


def _literal_text(phrase: Sequence[SyntaxNode]) -> str | None:
    """The text of a phrase that consists of literal text only, otherwise None."""
    texts = [node.text for node in phrase if isinstance(node, Text)]
    return "".join(texts) if len(texts) == len(phrase) else None


def looks_like_weight(text: str) -> str | None:
    """`text` without white space if it consists of digits, points and a sign only, otherwise None."""
    found = _WEIGHT.fullmatch(text)
    return found[1] if found and any(character.isdecimal() for character in found[1]) else None


def parse_weight(written: str, at: int, context: str = "") -> float:
    """A weight as a number; `context` is the text around it, for the error message.

    Raises:
        PromptError: it is not a finite number.
    """
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        where = f" in {context!r}" if context else ""
        raise PromptError(at, f"{written[:20]!r}{where} is not a number; write a weight like (word:1.3).")
    return number


Branch = tuple[str, list["Branch"]]  # the label of a tree node, and its children


def branches(phrase: Phrase) -> list[Branch]:
    """A phrase as a tree of labels for display; adjacent texts are joined, white space is left out."""
    found: list[Branch] = []
    for plain, nodes in groupby(phrase, lambda node: isinstance(node, Text)):
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
            return "BREAK: the following text starts a new chunk", []
        case Emphasis(inner, float(factor)):
            return f"weight × {factor:.4g}", branches(inner)
        case Emphasis(inner, scheduled):
            assert isinstance(scheduled, tuple)
            return "weight × a scheduled number", [("number", branches(scheduled[1:])), *branches(inner)]
        case ScheduledText(before, after, when):
            first = f"first {when} of all steps" if "." in when else f"first {when} steps"
            return "scheduled", [(first, branches(before)), ("then", branches(after))]
        case AlternatingText(options):
            return "alternating, one per step", [(f"{i} of {len(options)}", branches(option)) for i, option in enumerate(options, 1)]


def format_tree(tree: Sequence[Branch], indent: str = "") -> Iterator[str]:
    """The lines of a tree drawn with box characters."""
    for i, (label, children) in enumerate(tree, 1):
        last = i == len(tree)
        yield f"{indent}{'└─ ' if last else '├─ '}{label}"
        yield from format_tree(children, indent + ("   " if last else "│  "))


def caret_message(source: str, at: int, message: str, width: int = 60) -> str:
    """Two lines: `width` characters of the prompt around index `at`, and below them a caret at that character with the message."""
    start = max(at - width // 2, 0)
    excerpt = re.sub(r"\s", " ", source[start : start + width])
    before, after = "… " if start else "", " …" if start + width < len(source) else ""
    return f"{before}{excerpt}{after}\n{' ' * (len(before) + _columns(excerpt[: at - start]))}^ {message}"


def _columns(text: str) -> int:
    """The terminal columns of a text: 0 for combining characters, 2 for wide ones."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


@dataclass(frozen=True)
class PromptTag:
    """A tag of a prompt: its kind, such as "lora", and its arguments, split at the colons."""

    kind: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class LoraTag:
    """A LoRA that a prompt names. scale: for the UNet. text_scale: for the text encoders. rank: use only its first ranks, None for all."""

    name: str
    scale: float = 1.0
    text_scale: float = 1.0
    rank: int | None = None


def split_tags(prompt: str) -> tuple[str, tuple[PromptTag, ...]]:
    """The prompt without its tags, and the tags in order."""
    tags = tuple(PromptTag(found[1], tuple(part.strip() for part in found[2].split(":"))) for found in TAG.finditer(prompt))
    return TAG.sub("", prompt), tags


def lora_of_tag(tag: PromptTag) -> LoraTag:
    """The LoRA of a tag of the kind "lora" or "lyco".

    Raises:
        DaguerreError: a scale is not a number.
    """
    named = dict(part.split("=", 1) for part in tag.arguments[1:] if "=" in part)
    positions = [part for part in tag.arguments[1:] if "=" not in part]
    try:
        te = float(named.get("te", positions[0] if positions else 1.0))
        unet = float(named.get("unet", positions[1] if len(positions) > 1 else te))
        rank = int(dyn) if (dyn := named.get("dyn", positions[2] if len(positions) > 2 else "")) else None
    except ValueError as error:
        raise DaguerreError(
            f"The tag <{tag.kind}:{':'.join(tag.arguments)}> has a scale that is no number; write <lora:NAME:0.8>, or "
            "<lora:NAME:TEXT:UNET> for two scales."
        ) from error
    return LoraTag(tag.arguments[0], unet, te, rank)
