"""Lines of weighted text to windows of token ids: a prompt longer than the text tower's window is read in several.

A window holds `max_length - 2` tokens between begin and end (75 for CLIP). Where a window fills up shortly after a comma, what follows
the comma moves to the next one, so that a phrase is not torn; BREAK begins a new window. Both as in the Stable Diffusion web UI.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from daguerre.conditioning.prompt import PromptLine
from daguerre.conditioning.tokenizer import Tokenizer
from daguerre.conditioning.wordpiece import WordPiece

AnyTokenizer = Tokenizer | WordPiece
BACKTRACK = 20  # tokens after the last comma that may move on


@dataclass(frozen=True)
class Chunk:
    """One window: `max_length` ids, begin, end and padding among them, with a weight for each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, tokenizer: AnyTokenizer, tokens: Sequence[int] = (), weights: Sequence[float] = ()) -> "Chunk":
        """The window around at most `max_length - 2` tokens; begin, end and padding have weight 1."""
        padding = tokenizer.max_length - 1 - len(tokens)
        return cls(tuple(tokenizer.window(tokens)), (1.0, *weights, *[1.0] * padding))


@dataclass(frozen=True)
class Word:
    """A word of a prompt and where its tokens stand in the joined windows."""

    text: str
    positions: tuple[int, ...]


def split_into_chunks(tokenizer: AnyTokenizer, line: PromptLine) -> list[Chunk]:
    """The windows of a line, one or more; an empty stretch between two BREAKs is an empty window."""
    room, comma = tokenizer.max_length - 2, tokenizer.comma
    chunks: list[Chunk] = []
    tokens: list[int] = []
    weights: list[float] = []
    after_comma = 0  # how many tokens stand up to the last comma, it included; 0 without one

    def finish(count: int) -> None:
        """Make a window of the first `count` tokens and keep the others for the next."""
        nonlocal after_comma
        chunks.append(Chunk.of(tokenizer, tokens[:count], weights[:count]))
        del tokens[:count], weights[:count]
        after_comma = 0

    for number, stretch in enumerate(line):
        if number:
            finish(len(tokens))
        for piece in stretch:
            for group in tokenizer.groups(piece.text):
                if len(tokens) + len(group) > room:
                    torn = after_comma and group != (comma,) and len(tokens) - after_comma < BACKTRACK
                    finish(after_comma if torn else len(tokens))
                tokens += group
                weights += [piece.weight] * len(group)
                if group == (comma,):
                    after_comma = len(tokens)
    if tokens or not chunks:
        finish(len(tokens))
    return chunks


def find_words(tokenizer: AnyTokenizer, chunks: Sequence[Chunk]) -> list[Word]:
    """The words of a prompt's windows, tokens of one word together: what an attention map is drawn for."""
    found: list[Word] = []
    ids: list[int] = []
    positions: list[int] = []
    every = [number for chunk in chunks for number in chunk.ids]
    for place, (number, following) in enumerate(pairwise([*every, tokenizer.eos])):
        if number in (tokenizer.bos, tokenizer.eos, tokenizer.pad):
            continue
        ids.append(number)
        positions.append(place)
        if tokenizer.ends_word(number, following):
            found.append(Word(tokenizer.decode(ids), tuple(positions)))
            ids, positions = [], []
    return found
