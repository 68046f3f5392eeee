"""How latent diffusion models are told something, or nothing, without words (Rombach et al. 2022, arXiv:2112.10752, section 4.3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.conditioning import Conditioner, Word
from daguerre.conditioning.bbox_tokens import layout_tokens
from daguerre.conditioning.prompt import PromptLine, is_empty
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIPVision
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.spatial_rescaler import SpatialRescaler


class UnconditionalConditioner:
    """Of a model that is told nothing by its prompt: one empty condition."""

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning()


class ClassConditioner(Conditioner):
    """Of a class-conditional model: a prompt is a class number, and its embedding is a context of one token.

    The last embedding stands for no class, and an empty prompt for it (Ho and Salimans 2022, arXiv:2207.12598).
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """Raises DaguerreError where a line is no class number."""
        labels = torch.tensor([self._label(line) for line in lines], device=self.embedding.weight.device)
        return Conditioning(context=self.embedding(labels)[:, None])  # (B, 1, D)

    def words(self, line: PromptLine) -> list[Word]:
        return []

    def _label(self, line: PromptLine) -> int:
        none = self.embedding.num_embeddings - 1
        if is_empty(line):
            return none
        text = _text(line)
        if not text.isdecimal() or int(text) >= none:
            raise DaguerreError(f"This model draws classes: give a number from 0 to {none - 1} as the prompt, not {text[:60]!r}.")
        return int(text)


class LayoutConditioner(Conditioner):
    """Of a layout-to-image model: a prompt lists objects (see `text.layouts`); an empty one has none."""

    def __init__(self, encoder: LDMBert) -> None:
        super().__init__()
        self.encoder = encoder

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """Raises DaguerreError where a line is no list of objects, or lists too many."""
        device = self.encoder.model.layer_norm.weight.device
        return Conditioning(context=self.encoder(torch.tensor([self.tokens(_text(line)) for line in lines], device=device)))

    def words(self, line: PromptLine) -> list[Word]:
        return []

    def tokens(self, text: str) -> list[int]:
        """The ids of a list of objects, one row of the tower's length."""
        return layout_tokens(text, self.encoder.config.length, self.encoder.config.vocab_size)


class MapConditioner(nn.Module):
    """Of a model that draws from a map of classes and hears no words: prompts say nothing, and the map stands beside x."""

    def __init__(self, rescaler: SpatialRescaler) -> None:
        super().__init__()
        self.rescaler = rescaler

    def forward(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning()

    def encode_map(self, classes: Tensor) -> Tensor:
        """What stands beside x, (B, C, H/f, W/f), of maps of class numbers (B, H, W). Raises DaguerreError for an unknown class."""
        known, weight = self.rescaler.config.classes, self.rescaler.channel_mapper.weight
        if classes.min() < 0 or classes.max() >= known:
            raise DaguerreError(
                f"The map has classes from {int(classes.min())} to {int(classes.max())}; this model knows 0 to {known - 1}. "
                "Each pixel's grey value is its class: save the map as PNG, without smoothing or colours."
            )
        return self.rescaler(F.one_hot(classes.to(weight.device), known).movedim(-1, 1).to(weight.dtype))


class ImageConditioner(nn.Module):
    """Of a model that is told pictures by their CLIP embedding, a context of one token, and hears no words: prompts say nothing."""

    def __init__(self, encoder: CLIPVision) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompts: Sequence[str]) -> Conditioning:
        weight = self.encoder.vision_model.embeddings.class_embedding
        return Conditioning(context=torch.zeros(len(prompts), 1, self.encoder.config.projection or 0).to(weight))

    def encode_image(self, x: Tensor) -> Tensor:
        """Contexts (B, 1, D) of pictures (B, 3, size, size), normalised as CLIP's are."""
        embeds = self.encoder(x.to(self.encoder.vision_model.embeddings.class_embedding)).projected
        assert embeds is not None
        return embeds[:, None]


def _text(line: PromptLine) -> str:
    return " ".join(piece.text for stretch in line for piece in stretch).strip()
