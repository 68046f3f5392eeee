"""Conditioners for classes, layouts, class maps, images or nothing (Rombach et al. 2022, arXiv:2112.10752, section 4.3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.conditioning import Conditioner
from daguerre.conditioning.bbox_tokens import layout_tokens
from daguerre.conditioning.prompt import PromptLine, is_empty
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError, join_names, nearest
from daguerre.models.clip import CLIPVision
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.spatial_rescaler import SpatialRescaler


class UnconditionalConditioner:
    """For unconditional models: the condition is empty for any prompt."""

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning()


class ClassConditioner(Conditioner):
    """For class-conditional models: the prompt is a class number, and its embedding is a context of one token.

    The last embedding is the null class, which an empty prompt selects (Ho and Salimans 2022, arXiv:2207.12598).
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """Raises DaguerreError if a line is not a class number."""
        labels = torch.tensor([self._label(line) for line in lines], device=self.embedding.weight.device)
        return Conditioning(context=self.embedding(labels)[:, None])  # (B, 1, D)

    def _label(self, line: PromptLine) -> int:
        null = self.embedding.num_embeddings - 1
        if is_empty(line):
            return null
        text = _text(line)
        if not text.isdecimal() or int(text) >= null:
            raise DaguerreError(f"The prompt is {text[:60]!r}, but this model generates classes; give a number from 0 to {null - 1}.")
        return int(text)


class LabelConditioner(Conditioner):
    """For models with a class embedding in the UNet: the prompt is the name or number of a class, and the condition its label.

    The label after the last class is the null class, which an empty prompt selects (Ho and Salimans 2022, arXiv:2207.12598).
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self._numbers = {name.casefold(): number for number, name in reversed([*enumerate(self.names)])}

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """Raises DaguerreError if a line is neither the name nor the number of a class."""
        return Conditioning(label=torch.tensor([self._label(_text(line)) for line in lines]))  # (B,)

    def _label(self, text: str) -> int:
        known = self._numbers.get(text.casefold())
        if known is not None or not text:
            return len(self.names) if known is None else known
        if text.isdecimal() and int(text) < len(self.names):
            return int(text)
        raise DaguerreError(
            f"There is no class {text[:60]!r}; give a name or a number from 0 to {len(self.names) - 1}: {join_names(self.names)}."
            f"{nearest(text, self.names)}"
        )


class LayoutConditioner(Conditioner):
    """For layout-to-image models: the prompt lists objects and their boxes (see `bbox_tokens`); it may be empty."""

    def __init__(self, encoder: LDMBert) -> None:
        super().__init__()
        self.encoder = encoder

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """Raises DaguerreError if a line is not a list of objects, or lists too many."""
        device = self.encoder.model.layer_norm.weight.device
        return Conditioning(context=self.encoder(torch.tensor([self.tokens(_text(line)) for line in lines], device=device)))

    def tokens(self, text: str) -> list[int]:
        """The token ids of a list of objects, as many as the encoder has positions."""
        return layout_tokens(text, self.encoder.config.length, self.encoder.config.vocab_size)


class MapConditioner(nn.Module):
    """For semantic synthesis: a class map is concatenated to the network's input (`encode_map`); prompts are ignored."""

    def __init__(self, rescaler: SpatialRescaler) -> None:
        super().__init__()
        self.rescaler = rescaler

    def forward(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning()

    def encode_map(self, classes: Tensor) -> Tensor:
        """The channels to concatenate, (B, C, H/f, W/f), of maps of class numbers (B, H, W). Raises DaguerreError for an unknown class."""
        count, weight = self.rescaler.config.classes, self.rescaler.channel_mapper.weight
        if classes.min() < 0 or classes.max() >= count:
            raise DaguerreError(
                f"The class map has classes {int(classes.min())} to {int(classes.max())}; this model has 0 to {count - 1}. "
                "The grey value of each pixel is its class: save the map as a greyscale PNG without smoothing."
            )
        return self.rescaler(F.one_hot(classes.to(weight.device), count).movedim(-1, 1).to(weight.dtype))


class ImageConditioner(nn.Module):
    """For image variations: the CLIP embedding of an image is a context of one token (`encode_image`); prompts are ignored."""

    def __init__(self, encoder: CLIPVision) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompts: Sequence[str]) -> Conditioning:
        weight = self.encoder.vision_model.embeddings.class_embedding
        return Conditioning(context=torch.zeros(len(prompts), 1, self.encoder.config.projection or 0).to(weight))

    def encode_image(self, x: Tensor) -> Tensor:
        """Contexts (B, 1, D) of images (B, 3, size, size), normalised as for CLIP."""
        embeds = self.encoder(x.to(self.encoder.vision_model.embeddings.class_embedding)).projected
        assert embeds is not None
        return embeds[:, None]


def _text(line: PromptLine) -> str:
    return " ".join(piece.text for segment in line for piece in segment).strip()
