"""Conditioners for classes, layouts, maps, images or nothing (Rombach et al. 2022, arXiv:2112.10752, sections 3.3 and 4.3)."""

from collections.abc import Callable, Sequence
from typing import Literal

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

ConcatKind = Literal["low-res", "masked", "grey", "map", "semantic"]
RGB = tuple[int, int, int]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's grey images


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
    """For layout-to-image models: the prompt lists objects and their boxes (see `bbox_tokens`); it may be empty.

    names: of the classes, which the prompt may use instead of their numbers.
    """

    def __init__(self, encoder: LDMBert, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder, self.names = encoder, tuple(names)

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        """Raises DaguerreError if a line is not a list of objects, or lists too many."""
        device = self.encoder.model.layer_norm.weight.device
        return Conditioning(context=self.encoder(torch.tensor([self.tokens(_text(line)) for line in lines], device=device)))

    def tokens(self, text: str) -> list[int]:
        """The token ids of a list of objects, as many as the encoder has positions."""
        return layout_tokens(text, self.encoder.config.length, self.encoder.config.vocab_size, self.names)


class ConcatConditioner:
    """For models whose condition is an image, concatenated to the noisy latents as `channels` of their size; prompts are ignored.

    kind: what the channels hold, where f is the downsampling factor and Z the latent channels of the first stage:
        low-res    the pixels of an image 1/`scale` of the size; each block of f/scale × f/scale pixels becomes one position
        masked     latents of the image without its hole, and the mask
        grey       latents of the image without colours
        map        latents of a map, as an RGB image
        semantic   the share of each class in f × f pixels of a map in the colours of `palette`
    """

    def __init__(self, kind: ConcatKind, *, scale: int = 1, palette: Sequence[RGB] = ()) -> None:
        self.kind: ConcatKind = kind
        self.scale, self.palette = scale, tuple(palette)

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning()

    def channel_count(self, latent_channels: int, f: int) -> int:
        """The number of `channels`."""
        if self.kind == "low-res":
            return 3 * (f // self.scale) ** 2
        return {"masked": latent_channels + 1, "semantic": len(self.palette)}.get(self.kind, latent_channels)

    def channels(self, encode: Callable[[Tensor], Tensor], f: int, x: Tensor, hole: Tensor | None = None) -> Tensor:
        """The channels (B, C, h, w) of condition images x (B, 3, H, W) in [−1, 1].

        Args:
            encode: images to scaled latents, by the first stage with factor f.
            hole: (B, 1, H, W), 1 where to generate; only of a masked image.

        Raises:
            DaguerreError: a semantic map has a colour that is not in the palette.
        """
        match self.kind:
            case "low-res":
                return F.pixel_unshuffle(x, f // self.scale)
            case "masked":
                assert hole is not None
                return masked_channels(encode, x, hole, F.max_pool2d(hole, f))
            case "grey":
                return encode(without_colour(x))
            case "semantic":
                shares = F.one_hot(self._classes(x), len(self.palette)).movedim(-1, 1).to(x.dtype)
                return F.avg_pool2d(shares, f)
        return encode(x)  # of a map

    def _classes(self, x: Tensor) -> Tensor:
        """The class (B, H, W) of each pixel of x. Grey values 0, 1, … are class numbers, too, if they are not colours of the palette."""
        pixels = ((x.float() + 1) * 127.5).round().long().movedim(1, -1)  # (B, H, W, 3)
        equal = (pixels[..., None, :] == torch.tensor(self.palette, device=x.device)).all(-1)  # (B, H, W, K)
        unknown = ~equal.any(-1)
        if not unknown.any():
            return equal.int().argmax(-1)
        if (pixels == pixels[..., :1]).all() and pixels.max() < len(self.palette):
            return pixels[..., 0]
        colour = ", ".join(map(str, pixels[unknown][0].tolist()))
        raise DaguerreError(
            f"The map has the colour ({colour}), which is none of the {len(self.palette)} classes of this model: use its colours, or grey "
            f"values from 0 to {len(self.palette) - 1}, in a PNG without smoothing."
        )


def masked_channels(encode: Callable[[Tensor], Tensor], x: Tensor, hole: Tensor, unknown: Tensor) -> Tensor:
    """Latents of images x (B, 3, H, W) with a black hole (B, 1, H, W), then the mask (B, 1, h, w) in [−1, 1]: (B, Z + 1, h, w)."""
    return torch.cat([encode(x * (1 - hole) - hole), 2 * unknown - 1], dim=1)


def without_colour(x: Tensor) -> Tensor:
    """The brightness of images x (B, 3, H, W), in all three channels."""
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True).expand_as(x)


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
