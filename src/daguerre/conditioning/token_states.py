"""The tokens of a prompt with their ids, weights and hidden states: what cross-attention receives for each token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from daguerre.conditioning.chunks import AnyTokenizer, Chunk
from daguerre.conditioning.clip import ChunkedConditioner, Conditioner
from daguerre.conditioning.prompt import Prompt
from daguerre.conditioning.sdxl import SDXLConditioner
from daguerre.errors import DaguerreError

SHOWN_VALUES = 4  # of a hidden state in the text form


@dataclass(frozen=True)
class TokenState:
    """A token. chunk, position: from 0. text: "begin", "end" or "padding" for special tokens. state: (D,) hidden state, with the weight
    applied."""

    chunk: int
    position: int
    id: int
    text: str
    weight: float
    state: tuple[float, ...]

    @property
    def norm(self) -> float:
        """The length of the hidden state as a vector."""
        return math.hypot(*self.state)


@dataclass(frozen=True)
class EncodedPrompt:
    """One part of a prompt (parts are joined by AND), encoded by one text encoder.

    part: from 1. encoder: the class of the network. tokens: of all chunks. pooled: the pooled vector of the first chunk.
    """

    part: int
    encoder: str
    tokens: tuple[TokenState, ...]
    pooled: tuple[float, ...]

    def text(self) -> str:
        """As a table; padding is one line."""
        width, chunks = len(self.tokens[0].state), self.tokens[-1].chunk + 1
        lines = [
            f"{self.encoder}: {len(self.tokens)} tokens in {chunks} {'chunk' if chunks == 1 else 'chunks'}, "
            f"hidden states {len(self.tokens)}×{width}",
            f"{'chunk':>5} {'position':>8} {'id':>6} {'weight':>6} {'norm':>7}  {'token':<16} hidden state",
        ]
        padding: dict[int, list[TokenState]] = {}
        for token in self.tokens:
            if token.text == "padding":
                padding.setdefault(token.chunk, []).append(token)
                continue
            values = " ".join(f"{value:7.3f}" for value in token.state[:SHOWN_VALUES])
            lines.append(
                f"{token.chunk + 1:>5} {token.position:>8} {token.id:>6} {token.weight:>6.4g} {token.norm:>7.2f}  {token.text:<16} "
                f"{values}{' ...' if width > SHOWN_VALUES else ''}"
            )
        for chunk, tokens in padding.items():
            norms = [token.norm for token in tokens]
            lines.append(
                f"{chunk + 1:>5} {tokens[0].position:>8} {tokens[0].id:>6} {1:>6} {sum(norms) / len(norms):>7.2f}  "
                f"{len(tokens)} × padding, mean norm"
            )
        return "\n".join([*lines, f"pooled: {len(self.pooled)} values, norm {math.hypot(*self.pooled):.2f}"])

    def json(self) -> dict[str, Any]:
        """As a JSON object with all values."""
        tokens = [{name: getattr(token, name) for name in ("chunk", "position", "id", "text", "weight", "state")} for token in self.tokens]
        return {"part": self.part, "encoder": self.encoder, "tokens": tokens, "pooled": self.pooled}


@torch.no_grad()
def encode_tokens(conditioner: object, prompt: str, steps: int = 1) -> list[EncodedPrompt]:
    """Tokenize and encode a prompt as at the first of `steps` steps: an entry for each part and text encoder.

    Raises:
        DaguerreError: the prompt has a syntax error, or the conditioner has no tokenizer.
    """
    towers = conditioner.towers if isinstance(conditioner, SDXLConditioner) else [conditioner]
    encoders = [tower for tower in towers if isinstance(tower, ChunkedConditioner)]
    if not encoders:
        kind = "takes no text prompts" if not isinstance(conditioner, Conditioner) else "does not tokenize its prompts as text"
        raise DaguerreError(f"This model {kind}, so there are no tokens to show; take a model with a text encoder.")
    lines = Prompt.parse(prompt).at(0, steps)
    found = []
    for part, line in enumerate(lines, 1):
        for encoder in encoders:
            (chunks,) = encoder.chunks([line])
            states, pooled = encoder.encode_chunks([chunks])  # (1, chunks · L, D), (1, P)
            tokens = _tokens(encoder.tokenizer, chunks, states[0].float().tolist())
            found.append(EncodedPrompt(part, encoder.encoder_name, tokens, tuple(pooled[0].float().tolist())))
    return found


def _tokens(tokenizer: AnyTokenizer, chunks: Sequence[Chunk], states: Sequence[Sequence[float]]) -> tuple[TokenState, ...]:
    tokens: list[TokenState] = []
    for number, chunk in enumerate(chunks):
        end = chunk.ids.index(tokenizer.eos, 1)
        for position, (token_id, weight) in enumerate(zip(chunk.ids, chunk.weights, strict=True)):
            special = "begin" if position == 0 else "end" if position == end else "padding" if position > end else None
            text = special or tokenizer.decode([token_id])
            tokens.append(TokenState(number, position, token_id, text, weight, tuple(states[len(tokens)])))
    return tuple(tokens)
