"""How latent diffusion models are told something, or nothing, without words."""

from collections.abc import Sequence

import torch
from torch import nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.text import Conditioner, Word
from daguerre.text.prompt import Line, says_nothing


class Unconditional:
    """Of a model that is told nothing by its prompt: one empty condition."""

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning()


class ClassConditioner(Conditioner):
    """Of a class-conditional model: a prompt is a class number, and its embedding is a context of one token.

    The last embedding stands for no class, and an empty prompt for it (Rombach et al. 2022, arXiv:2112.10752, section 4.3; Ho and Salimans
    2022, arXiv:2207.12598).
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def encode(self, lines: Sequence[Line], negative: Sequence[bool] = ()) -> Conditioning:
        """Raises DaguerreError where a line is no class number."""
        labels = torch.tensor([self._label(line) for line in lines], device=self.embedding.weight.device)
        return Conditioning(context=self.embedding(labels)[:, None])  # (B, 1, D)

    def words(self, line: Line) -> list[Word]:
        return []

    def _label(self, line: Line) -> int:
        none = self.embedding.num_embeddings - 1
        if says_nothing(line):
            return none
        text = " ".join(piece.text for stretch in line for piece in stretch).strip()
        if not text.isdecimal() or int(text) >= none:
            raise DaguerreError(f"This model draws classes: give a number from 0 to {none - 1} as the prompt, not {text[:60]!r}.")
        return int(text)
