"""What a prior over codes is told, as the tokens that stand before a picture's codes (Esser et al. 2021, arXiv:2012.09841, section 3.2).

Nothing, a class, a text, boxes of objects, the codes that a second first stage gives of a map of the picture, or each code's place in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.conditioning.bbox_tokens import layout_tokens
from daguerre.conditioning.tokenizer import Tokenizer
from daguerre.data.condition_maps import MapKind
from daguerre.data.images import to_uint8
from daguerre.errors import DaguerreError, nearest
from daguerre.models.latent_prior import PriorInputs
from daguerre.models.transformer_prior import coordinate_codes
from daguerre.models.vq_model import VQModel

MAX_LISTED_NAMES = 12  # class names that an error shows


@dataclass(frozen=True)
class EmptyPrefix:
    """Of a prior that is told nothing."""

    tokens: int = 0

    def __call__(self, told: PriorInputs) -> None:
        _refuse(told, words=True, map=True, instead="it draws what it likes")


@dataclass(frozen=True)
class ClassPrefix:
    """One token: the number of a class, which a prompt gives by its name."""

    names: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return len(self.names)

    def __call__(self, told: PriorInputs) -> Tensor:
        """(B, 1)."""
        _refuse(told, map=True, instead="give the name of a class")
        return self.labels(told.prompts)

    def labels(self, names: Sequence[str]) -> Tensor:
        """The numbers (B, 1) of classes. Raises DaguerreError for a name that there is not."""
        numbers = {name.casefold(): number for number, name in enumerate(self.names)}
        for name in names:
            if not name:
                raise DaguerreError(f"No class is named; {self._known()}.")
            if name.casefold() not in numbers:
                raise DaguerreError(f"There is no class {name[:60]!r}; {self._known()}.{nearest(name, self.names)}")
        return torch.tensor([[numbers[name.casefold()]] for name in names])

    def _known(self) -> str:
        more = f" and {len(self.names) - MAX_LISTED_NAMES} more" if len(self.names) > MAX_LISTED_NAMES else ""
        return f"this prior knows {', '.join(self.names[:MAX_LISTED_NAMES])}{more}"


@dataclass(frozen=True)
class TextPrefix:
    """The tokens of a text, cut or padded to the tokenizer's window."""

    tokenizer: Tokenizer

    @property
    def tokens(self) -> int:
        return len(self.tokenizer)

    def __call__(self, told: PriorInputs) -> Tensor:
        """(B, max_length)."""
        _refuse(told, map=True, instead="give a prompt")
        return self.tokenizer(told.prompts)


@dataclass(frozen=True)
class LayoutPrefix:
    """Boxes of objects, which a prompt lists, as a row of `length` tokens (see `text.layouts`)."""

    tokens: int
    length: int

    def __call__(self, told: PriorInputs) -> Tensor:
        """(B, length)."""
        _refuse(told, map=True, instead="list objects and their boxes")
        return torch.tensor([layout_tokens(prompt, self.length, self.tokens) for prompt in told.prompts])


@dataclass(frozen=True)
class MapPrefix:
    """The codes of a map, by the first stage of maps: what things are where, their edges, depth, or the picture in small.

    palette: the only colours that a semantic map may have; where it is empty, any.
    """

    autoencoder: VQModel
    kind: MapKind
    palette: tuple[tuple[int, int, int], ...] = ()

    @property
    def tokens(self) -> int:
        return self.autoencoder.config.quantizer.codes

    @torch.no_grad()
    def __call__(self, told: PriorInputs) -> Tensor:
        """(B, h, w), of the picture's own grid."""
        _refuse(told, words=True, instead="give a map")
        if told.condition_map is None:
            raise DaguerreError(f"This prior is told by a map ({self.kind}) of the picture; give one with --map.")
        height, width = (side * self.autoencoder.downsample_factor for side in told.grid)
        if told.condition_map.shape[-2:] != (height, width):
            given = f"{told.condition_map.shape[-1]}×{told.condition_map.shape[-2]}"
            raise DaguerreError(f"The map is {given} pixels; it must be as large as the picture, {width}×{height}.")
        if self.palette:
            check_palette(told.condition_map, self.palette)
        where = next(self.autoencoder.parameters())
        return self.autoencoder.encode_codes(with_channels(told.condition_map, self.autoencoder.config.in_channels).to(where)).expand(
            len(told), -1, -1
        )


@dataclass(frozen=True)
class CoordinatePrefix:
    """Each code's place in its picture as one of `tokens` numbers, for data that is not alike everywhere (section 4.3)."""

    tokens: int
    downsampling: int

    def __call__(self, told: PriorInputs) -> Tensor:
        """(B, h, w)."""
        _refuse(told, words=True, map=True, instead="it draws what it likes")
        height, width = (side * self.downsampling for side in told.grid)
        places = coordinate_codes(height, width, codes=self.tokens, downsample_factor=self.downsampling)
        return places.clamp(max=self.tokens - 1).expand(len(told), -1, -1)


def with_channels(map: Tensor, channels: int) -> Tensor:
    """A map (B, 3, H, W) in [−1, 1] as a first stage of so many channels reads it: as it is, or each class as a channel of its own, its
    number being the grey value. Raises DaguerreError for a class that there is not."""
    if channels == map.shape[1]:
        return map
    classes = to_uint8(map)[..., 0].to(map.device).long()  # (B, H, W)
    if classes.max() >= channels or (map != map[:, :1]).any():
        raise DaguerreError(f"The map is no map of classes: its pixels must be grey, the numbers of classes from 0 to {channels - 1}.")
    return F.one_hot(classes, channels).movedim(-1, 1)


def check_palette(map: Tensor, palette: Sequence[tuple[int, int, int]]) -> None:
    """Raise DaguerreError for a map (B, 3, H, W) in [−1, 1] with a colour that stands for no class."""
    pixels = to_uint8(map).to(map.device).long().flatten(0, -2)  # (N, 3)
    known = (pixels[:, None] == torch.tensor(palette, device=pixels.device)).all(dim=2).any(dim=1)  # (N,)
    if not known.all():
        stray = tuple(pixels[~known][0].tolist())
        share = (~known).float().mean().item()
        raise DaguerreError(
            f"{share:.0%} of the map's pixels, such as {stray}, stand for no class; its colours must be {', '.join(hex_names(palette))}. "
            "Save it as PNG, without smoothing."
        )


def hex_names(palette: Sequence[tuple[int, int, int]]) -> list[str]:
    """Colours as #rrggbb."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette]


def _refuse(told: PriorInputs, *, words: bool = False, map: bool = False, instead: str) -> None:
    """Raise DaguerreError where words or a map are given to a prior that is not told by them."""
    if words and any(told.prompts):
        raise DaguerreError(
            f"This prior is not told by words, so the prompt {next(filter(None, told.prompts))[:60]!r} says nothing; {instead}."
        )
    if map and told.condition_map is not None:
        raise DaguerreError(f"This prior is not told by a map; {instead}.")


Prefixes = EmptyPrefix | ClassPrefix | TextPrefix | LayoutPrefix | MapPrefix | CoordinatePrefix
