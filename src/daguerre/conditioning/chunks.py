"""Split weighted text into chunks of token ids: a prompt that is longer than the text encoder's context takes several chunks.

A chunk holds `max_length - 2` tokens between the begin and end tokens (75 for CLIP). If a chunk is full shortly after a comma, the text
after the comma moves to the next chunk, so that a phrase is not split. BREAK starts a new chunk. Both as in the Stable Diffusion web UI.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from daguerre.conditioning.prompt import PromptLine
from daguerre.conditioning.tokenizer import Tokenizer
from daguerre.conditioning.wordpiece import WordPiece

AnyTokenizer = Tokenizer | WordPiece
MAX_BACKTRACK = 20  # fewer tokens than this after the last comma move to the next chunk


@dataclass(frozen=True)
class Chunk:
    """`max_length` token ids, including begin, end and padding, and one weight per token."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, tokenizer: AnyTokenizer, tokens: Sequence[int] = (), weights: Sequence[float] = ()) -> "Chunk":
        """A chunk of at most `max_length - 2` tokens; begin, end and padding have weight 1."""
        padding = tokenizer.max_length - 1 - len(tokens)
        return cls(tuple(tokenizer.with_special_tokens(tokens)), (1.0, *weights, *[1.0] * padding))


@dataclass(frozen=True)
class Word:
    """A word of a prompt and the positions of its tokens in the concatenated chunks."""

    text: str
    positions: tuple[int, ...]


def split_into_chunks(tokenizer: AnyTokenizer, line: PromptLine) -> list[Chunk]:
    """The chunks of a line, at least one; nothing between two BREAKs gives an empty chunk."""
    capacity, comma = tokenizer.max_length - 2, tokenizer.comma
    chunks: list[Chunk] = []
    tokens: list[int] = []
    weights: list[float] = []
    after_comma = 0  # the number of tokens up to and including the last comma; 0 if there is none

    def finish_chunk(count: int) -> None:
        """Make a chunk of the first `count` tokens and keep the others for the next."""
        nonlocal after_comma
        chunks.append(Chunk.of(tokenizer, tokens[:count], weights[:count]))
        del tokens[:count], weights[:count]
        after_comma = 0

    for number, segment in enumerate(line):
        if number:
            finish_chunk(len(tokens))
        for piece in segment:
            for group in tokenizer.groups(piece.text):
                if len(tokens) + len(group) > capacity:
                    splits_phrase = after_comma and group != (comma,) and len(tokens) - after_comma < MAX_BACKTRACK
                    finish_chunk(after_comma if splits_phrase else len(tokens))
                tokens += group
                weights += [piece.weight] * len(group)
                if group == (comma,):
                    after_comma = len(tokens)
    if tokens or not chunks:
        finish_chunk(len(tokens))
    return chunks


def find_words(tokenizer: AnyTokenizer, chunks: Sequence[Chunk]) -> list[Word]:
    """The words of a prompt, each with all of its tokens; attention maps are computed per word."""
    words: list[Word] = []
    ids: list[int] = []
    positions: list[int] = []
    all_ids = [number for chunk in chunks for number in chunk.ids]
    for position, (number, following) in enumerate(pairwise([*all_ids, tokenizer.eos])):
        if number in (tokenizer.bos, tokenizer.eos, tokenizer.pad):
            continue
        ids.append(number)
        positions.append(position)
        if tokenizer.ends_word(number, following):
            words.append(Word(tokenizer.decode(ids), tuple(positions)))
            ids, positions = [], []
    return words
