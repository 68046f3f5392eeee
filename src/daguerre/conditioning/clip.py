"""Prompts to what a network reads: the token states for its cross-attention.

A prompt is parsed, settled at one step, cut into windows, and each window is read by the text tower on its own. The states h of a
window are multiplied by the weights of their tokens; then, in the original way, scaled so that their mean is what it was:

    h <- w h,   h <- h · mean(h before) / mean(h after)
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from daguerre.conditioning.chunks import AnyTokenizer, Chunk, Word, find_words, split_into_chunks
from daguerre.conditioning.prompt import Prompt, PromptLine, WeightedText
from daguerre.conditioning.tokenizer import Tokenizer
from daguerre.conditioning.wordpiece import WordPiece
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIPText
from daguerre.models.ldm_bert import LDMBert

EmphasisMode = Literal["restore_mean", "keep"]


@dataclass(frozen=True)
class SizeConditioning:
    """What SDXL is told of a picture (Podell et al. 2023, arXiv:2307.01952, section 2.2).

    original, target: (height, width) in pixels, before training's resizing and after.
    crop: (top, left) of training's crop, in pixels.
    score, negative_score: the refiner's aesthetic score, 0 to 10, for the prompt and for the negative prompt.
    """

    original: tuple[int, int]
    target: tuple[int, int]
    crop: tuple[int, int] = (0, 0)
    score: float = 6.0
    negative_score: float = 2.5


class Conditioner(nn.Module, ABC):
    """Prompts to conditions. What the kinds share: parsing, and the same face to pipelines and training."""

    @abstractmethod
    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """The conditions of settled lines, all padded to as many windows as the longest needs.

        Args:
            lines: one for each picture.
            negative: which of them stem from a negative prompt, none unless told; only SDXL minds.
        """

    @abstractmethod
    def words(self, line: PromptLine) -> list[Word]:
        """The words of a line and where their tokens stand in the context."""

    def with_size(self, height: int, width: int, size: SizeConditioning | None = None) -> "Conditioner":
        """This conditioner for pictures of so many pixels; only SDXL's minds, and gives another that shares its text towers."""
        return self

    def with_clip_skip(self, clip_skip: int) -> "Conditioner":
        """A copy that reads an earlier layer of its CLIP text towers and shares their weights (see `TextConditioner`).

        Raises:
            DaguerreError: the model has no CLIP text tower, or the tower has no such layer.
        """
        raise DaguerreError(f"clip_skip = {clip_skip} has no effect: this model has no CLIP text encoder; remove it.")

    def forward(self, prompts: Sequence[str], *, step: int = 0, steps: int = 1) -> Conditioning:
        """The conditions of one prompt for each picture, at one step of so many: context (B, windows · L, D), for SDXL vector (B, V).

        Raises:
            DaguerreError: for a prompt that cannot be read, and for one with AND, which is several conditions: see `plan`.
        """
        lines = []
        for prompt in prompts:
            said = Prompt.parse(prompt).at(step, steps)
            if len(said) > 1:
                raise DaguerreError(f"{prompt[:60]!r} joins {len(said)} parts with AND, and only one condition fits here; write it as one.")
            lines += said
        return self.encode(lines)

    def encode_captions(self, texts: Sequence[str]) -> Conditioning:
        """Texts as they are, brackets being brackets, each cut to one window: what training tells the network."""
        return self.encode([((WeightedText(text, 1.0),),) for text in texts])


class ChunkedConditioner(Conditioner):
    """What conditioners of one tokenizer and one text tower share: windows, joined states, weights of words.

    `emphasis` says whether the mean of weighted states is restored ("restore_mean", the original way) or not ("keep").
    """

    def __init__(self, tokenizer: AnyTokenizer, known: int, places: int, *, emphasis: EmphasisMode = "restore_mean") -> None:
        """known, places: how many tokens the tower knows, and how many it reads at once.

        Raises:
            DaguerreError: the tower knows fewer tokens than the tokenizer, or has fewer places than its window.
        """
        super().__init__()
        if emphasis not in ("restore_mean", "keep"):
            raise DaguerreError(f"Weighted prompts are read with emphasis 'restore_mean' or 'keep', not {emphasis!r}.")
        if len(tokenizer) > known or tokenizer.max_length > places:
            raise DaguerreError(
                f"The tokenizer has {len(tokenizer)} tokens and a window of {tokenizer.max_length}, the text tower only {known} "
                f"and {places}: they do not belong together."
            )
        self.tokenizer = tokenizer
        self.emphasis: EmphasisMode = emphasis

    @abstractmethod
    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The states (B, L, D) and the pooled vectors (B, P) of rows of ids (B, L)."""

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        return Conditioning(context=self.encode_chunks(self.chunks(lines))[0])

    def encode_captions(self, texts: Sequence[str]) -> Conditioning:
        return Conditioning(context=self._states(self.tokenizer(texts))[0])

    def words(self, line: PromptLine) -> list[Word]:
        return find_words(self.tokenizer, split_into_chunks(self.tokenizer, line))

    def chunks(self, lines: Sequence[PromptLine]) -> list[list[Chunk]]:
        """The windows of each line, not yet padded to the same number."""
        return [split_into_chunks(self.tokenizer, line) for line in lines]

    def encode_chunks(self, windows: Sequence[Sequence[Chunk]], count: int = 0) -> tuple[Tensor, Tensor]:
        """States and pooled vector of each row's windows, padded with empty ones to `count` or the longest.

        Returns the joined states (B, windows · L, D) and the first window's pooled vector (B, P), projected where the tower projects.
        """
        count = max(count, *map(len, windows)) if windows else 1
        empty = Chunk.of(self.tokenizer)
        padded = [[*row, *[empty] * (count - len(row))] for row in windows]
        ids = torch.tensor([chunk.ids for row in padded for chunk in row], dtype=torch.int64).reshape(-1, self.tokenizer.max_length)
        weights = torch.tensor([chunk.weights for row in padded for chunk in row]).reshape(ids.shape)
        states, pooled = self._states(ids)  # (B · windows, L, D), (B · windows, P)
        if bool((weights != 1).any()):
            states = self._weighted(states, weights.to(states.device))
        return states.reshape(len(windows), -1, states.shape[-1]), pooled[::count]

    def _weighted(self, states: Tensor, weights: Tensor) -> Tensor:
        """Token states (N, L, D) times their weights (N, L), each window's mean restored where wanted."""
        h = states.float()
        weighted = h * weights[..., None]
        if self.emphasis == "restore_mean":
            # Per window, so that a picture does not depend on what else is in its batch.
            weighted = weighted * (h.mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True))
        return weighted.to(states.dtype)


class TextConditioner(ChunkedConditioner):
    """A tokenizer and one CLIP text tower; the condition is the hidden state of one layer.

    Clip skip counts the layers of the published tower from its end: 1 is the last layer, 2 the penultimate. Stable Diffusion 1 was trained
    with 1 and Stable Diffusion 2 with 2, both with the final norm applied; SDXL was trained with 2 and without the norm.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        tokenizer: Tokenizer,
        encoder: CLIPText,
        *,
        layer: int = -1,
        norm: bool = True,
        cut_layers: int = 0,
        emphasis: EmphasisMode = "restore_mean",
    ) -> None:
        """Combine a tokenizer and a text tower.

        Args:
            layer: index into the tower's hidden states, -1 for the last.
            norm: whether to apply the final norm to the hidden state.
            cut_layers: how many last layers of the published tower `encoder` lacks; 1 for Stable Diffusion 2, which does not use the last.
            emphasis: see `ChunkedConditioner`.

        Raises:
            DaguerreError: the tower has no such layer, has fewer tokens than the tokenizer, or fewer positions than a chunk.
        """
        depth, known = encoder.config.layers, encoder.text_model.embeddings.token_embedding.num_embeddings
        super().__init__(tokenizer, known, encoder.config.length, emphasis=emphasis)
        if not -depth - 1 <= layer <= depth:
            raise DaguerreError(f"The text tower has layers -1 (the last) to {-depth - 1} (before the first), not {layer}.")
        self.encoder, self.layer, self.norm, self.cut_layers = encoder, layer, norm, cut_layers

    @property
    def clip_skip(self) -> int:
        """The clip skip of the layer in use."""
        return self.cut_layers - self.layer

    def with_clip_skip(self, clip_skip: int) -> "TextConditioner":
        least, most = 1 + self.cut_layers, self.encoder.config.layers + self.cut_layers
        if not least <= clip_skip <= most:
            raise DaguerreError(f"clip_skip = {clip_skip} is out of range; this text encoder allows {least} to {most}.")
        layer = self.cut_layers - clip_skip
        return TextConditioner(
            self.tokenizer, self.encoder, layer=layer, norm=self.norm, cut_layers=self.cut_layers, emphasis=self.emphasis
        )

    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The wanted layer's states (B, L, D) and the pooled vectors (B, P) of rows of ids (B, L)."""
        states = self.encoder(ids.to(self.encoder.text_model.final_layer_norm.weight.device))
        hidden = states.hidden[self.layer]
        hidden = self.encoder.text_model.final_layer_norm(hidden) if self.norm else hidden
        return hidden, states.pooled if states.projected is None else states.projected


class LDMTextConditioner(ChunkedConditioner):
    """BERT's tokenizer and the text tower of the first text-to-image latent diffusion."""

    def __init__(self, tokenizer: WordPiece, encoder: LDMBert) -> None:
        """Join the two. Raises DaguerreError where they do not belong together."""
        # Its states have means near zero, which no weighted ones could be scaled back to.
        super().__init__(tokenizer, encoder.config.vocab_size, encoder.config.length, emphasis="keep")
        self.encoder = encoder

    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states = self.encoder(ids.to(self.encoder.model.layer_norm.weight.device))
        return states, states[:, 0]
