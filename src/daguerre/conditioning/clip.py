"""Text conditioners: they encode prompts into hidden states for the cross-attention of a network.

A prompt is parsed, evaluated at one step and split into chunks; the text encoder encodes each chunk separately. The hidden states h of a
chunk are multiplied by the weights w of their tokens and then, as in the Stable Diffusion web UI, rescaled to their original mean:

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
    """SDXL's size conditioning (Podell et al. 2023, arXiv:2307.01952, section 2.2).

    original_size, target_size: (height, width) in pixels; in training, of an image before and after it was resized.
    crop_top_left: (top, left) in pixels; in training, of the crop.
    aesthetic_score, negative_aesthetic_score: 0 to 10, for the prompt and the negative prompt; used by the refiner.
    """

    original_size: tuple[int, int]
    target_size: tuple[int, int]
    crop_top_left: tuple[int, int] = (0, 0)
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5


class Conditioner(nn.Module, ABC):
    """Encodes prompts into conditions; the interface that pipelines and training use."""

    @abstractmethod
    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """Encode lines, all padded to the number of chunks that the longest needs.

        Args:
            lines: one per image.
            negative: whether each line comes from a negative prompt, by default none; only SDXL distinguishes them.
        """

    def words(self, line: PromptLine) -> list[Word]:
        """The words of a line and the positions of their tokens in the context; none if the context has no text."""
        return []

    def with_size(self, height: int, width: int, size: SizeConditioning | None = None) -> "Conditioner":
        """A conditioner for images of this size in pixels. Only SDXL depends on it, and returns a copy that shares its text encoders."""
        return self

    def with_clip_skip(self, clip_skip: int) -> "Conditioner":
        """A copy that uses an earlier layer of its CLIP text encoders and shares their weights (see `TextConditioner`).

        Raises:
            DaguerreError: the model has no CLIP text encoder, or the encoder has no such layer.
        """
        raise DaguerreError(f"clip_skip = {clip_skip} has no effect: this model has no CLIP text encoder; remove it.")

    def forward(self, prompts: Sequence[str], *, step: int = 0, steps: int = 1) -> Conditioning:
        """Encode one prompt per image at `step` (from 0) of `steps`: context (B, chunks · L, D), for SDXL also vector (B, V).

        Raises:
            DaguerreError: a prompt cannot be parsed, or has parts joined by AND, which need several conditions (see `PromptSchedule`).
        """
        lines = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            parts = Prompt.parse(prompt).at(step, steps)
            if len(parts) > 1:
                raise DaguerreError(f"{prompt[:60]!r} has {len(parts)} parts joined by AND; only one part is allowed here, so remove AND.")
            lines += parts
        return self.encode(lines)

    def encode_captions(self, texts: Sequence[str]) -> Conditioning:
        """Encode training captions: literal texts without prompt syntax, each cut to one chunk."""
        texts = [texts] if isinstance(texts, str) else texts
        return self.encode([((WeightedText(text, 1.0),),) for text in texts])


class ChunkedConditioner(Conditioner):
    """A conditioner with one tokenizer and one text encoder: long prompts in chunks, and token weights.

    emphasis: whether the mean of weighted hidden states is restored ("restore_mean", as in the web UI) or not ("keep").
    """

    def __init__(self, tokenizer: AnyTokenizer, vocab_size: int, max_positions: int, *, emphasis: EmphasisMode = "restore_mean") -> None:
        """vocab_size, max_positions: of the text encoder.

        Raises:
            DaguerreError: the text encoder has fewer tokens than the tokenizer, or fewer positions than a chunk.
        """
        super().__init__()
        if emphasis not in ("restore_mean", "keep"):
            raise DaguerreError(f"emphasis is {emphasis!r}; it must be 'restore_mean' or 'keep'.")
        if len(tokenizer) > vocab_size or tokenizer.max_length > max_positions:
            raise DaguerreError(
                f"The tokenizer ({len(tokenizer)} tokens, {tokenizer.max_length} per chunk) does not match the text encoder "
                f"({vocab_size} tokens, {max_positions} positions); use the tokenizer that came with the model."
            )
        self.tokenizer = tokenizer
        self.emphasis: EmphasisMode = emphasis

    @property
    def encoder_name(self) -> str:
        """The class of the text encoder."""
        return type(next(self.children())).__name__

    @abstractmethod
    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states (B, L, D) and pooled vectors (B, P) of token ids (B, L)."""

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        return Conditioning(context=self.encode_chunks(self.chunks(lines))[0])

    def encode_captions(self, texts: Sequence[str]) -> Conditioning:
        return Conditioning(context=self._states(self.tokenizer(texts))[0])

    def words(self, line: PromptLine) -> list[Word]:
        return find_words(self.tokenizer, split_into_chunks(self.tokenizer, line))

    def chunks(self, lines: Sequence[PromptLine]) -> list[list[Chunk]]:
        """The chunks of each line, not yet padded to the same number."""
        return [split_into_chunks(self.tokenizer, line) for line in lines]

    def encode_chunks(self, rows: Sequence[Sequence[Chunk]], count: int = 0) -> tuple[Tensor, Tensor]:
        """Encode the chunks of each row, padded with empty chunks to `count` or the longest row.

        Returns the concatenated hidden states (B, chunks · L, D) and the pooled vector of the first chunk (B, P), projected if the text
        encoder has a projection.
        """
        count = max(count, *map(len, rows)) if rows else 1
        empty = Chunk.of(self.tokenizer)
        padded = [[*row, *[empty] * (count - len(row))] for row in rows]
        ids = torch.tensor([chunk.ids for row in padded for chunk in row], dtype=torch.int64).reshape(-1, self.tokenizer.max_length)
        weights = torch.tensor([chunk.weights for row in padded for chunk in row]).reshape(ids.shape)
        states, pooled = self._states(ids)  # (B · chunks, L, D), (B · chunks, P)
        if bool((weights != 1).any()):
            states = self._apply_weights(states, weights.to(states.device))
        return states.reshape(len(rows), -1, states.shape[-1]), pooled[::count]

    def _apply_weights(self, states: Tensor, weights: Tensor) -> Tensor:
        """Hidden states (N, L, D) times their weights (N, L); with "restore_mean" each chunk keeps its mean."""
        h = states.float()
        weighted = h * weights[..., None]
        if self.emphasis == "restore_mean":
            # Per chunk, so that an image does not depend on the rest of its batch.
            weighted = weighted * (h.mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True))
        return weighted.to(states.dtype)


class TextConditioner(ChunkedConditioner):
    """A tokenizer and one CLIP text encoder; the condition is the hidden states of one layer.

    Clip skip counts the layers of the published encoder from the end: 1 is the last layer, 2 the penultimate. Stable Diffusion 1 was
    trained with 1 and Stable Diffusion 2 with 2, both with the final norm applied; SDXL was trained with 2 and without the norm.
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
        """Combine a tokenizer and a text encoder.

        Args:
            layer: index into the encoder's hidden states, -1 for the last layer.
            norm: whether to apply the final norm to the hidden states.
            cut_layers: how many last layers of the published encoder are missing; 1 for Stable Diffusion 2, which does not use the last.
            emphasis: see `ChunkedConditioner`.

        Raises:
            DaguerreError: the encoder has no such layer, has fewer tokens than the tokenizer, or fewer positions than a chunk.
        """
        depth, vocab_size = encoder.config.layers, encoder.text_model.embeddings.token_embedding.num_embeddings
        super().__init__(tokenizer, vocab_size, encoder.config.length, emphasis=emphasis)
        if not -depth - 1 <= layer <= depth:
            raise DaguerreError(f"layer is {layer}; this text encoder has -1 (the last layer) to {-depth - 1} (the embeddings).")
        self.encoder, self.layer, self.norm, self.cut_layers = encoder, layer, norm, cut_layers

    @property
    def clip_skip(self) -> int:
        """The clip skip of the layer in use."""
        return self.cut_layers - self.layer

    def with_clip_skip(self, clip_skip: int) -> "TextConditioner":
        least, most = 1 + self.cut_layers, self.encoder.config.layers + self.cut_layers
        if not least <= clip_skip <= most:
            raise DaguerreError(f"clip_skip = {clip_skip} is out of range; this text encoder allows {least} to {most}.")
        return self._with(layer=self.cut_layers - clip_skip)

    def with_encoder(self, encoder: CLIPText, tokenizer: Tokenizer | None = None) -> "TextConditioner":
        """The same with another text encoder, such as an edited copy, and optionally another tokenizer.

        Raises:
            DaguerreError: the encoder has fewer tokens than the tokenizer.
        """
        return self._with(encoder=encoder, tokenizer=tokenizer or self.tokenizer)

    def _with(self, *, encoder: CLIPText | None = None, tokenizer: Tokenizer | None = None, layer: int | None = None) -> "TextConditioner":
        changed = TextConditioner(
            tokenizer or self.tokenizer,
            encoder or self.encoder,
            layer=self.layer if layer is None else layer,
            norm=self.norm,
            cut_layers=self.cut_layers,
            emphasis=self.emphasis,
        )
        return changed.train(self.training)

    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states = self.encoder(ids.to(self.encoder.text_model.final_layer_norm.weight.device))
        hidden = states.hidden[self.layer]
        hidden = self.encoder.text_model.final_layer_norm(hidden) if self.norm else hidden
        return hidden, states.pooled if states.projected is None else states.projected


class LDMTextConditioner(ChunkedConditioner):
    """BERT's tokenizer and the text encoder of CompVis' text-to-image latent diffusion (LDM)."""

    def __init__(self, tokenizer: WordPiece, encoder: LDMBert) -> None:
        """Combine the two. Raises DaguerreError if they do not match."""
        # The means of its hidden states are near zero, so rescaling to them would be unstable.
        super().__init__(tokenizer, encoder.config.vocab_size, encoder.config.length, emphasis="keep")
        self.encoder = encoder

    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states = self.encoder(ids.to(self.encoder.model.layer_norm.weight.device))
        return states, states[:, 0]
