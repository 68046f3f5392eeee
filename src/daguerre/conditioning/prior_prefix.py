"""The conditions of a prior over codes, as tokens that precede the image's codes (Esser et al. 2021, arXiv:2012.09841, section 3.2).

There are six kinds: nothing, a class, a text, bounding boxes, the codes of a condition map, or the coordinates of each code.
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
    """For unconditional priors."""

    tokens: int = 0

    def __call__(self, inputs: PriorInputs) -> None:
        _reject(inputs, prompts=True, condition_map=True, advice="remove it")


@dataclass(frozen=True)
class ClassPrefix:
    """One token: the number of the class that the prompt names."""

    names: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return len(self.names)

    def __call__(self, inputs: PriorInputs) -> Tensor:
        """(B, 1)."""
        _reject(inputs, condition_map=True, advice="give the name of a class as the prompt")
        return self.labels(inputs.prompts)

    def labels(self, names: Sequence[str]) -> Tensor:
        """The numbers (B, 1) of classes by name. Raises DaguerreError for an unknown name."""
        numbers = {name.casefold(): number for number, name in enumerate(self.names)}
        for name in names:
            if not name:
                raise DaguerreError(f"The prompt is empty, but this prior needs a class name; {self._known()}.")
            if name.casefold() not in numbers:
                raise DaguerreError(f"Unknown class {name[:60]!r}; {self._known()}.{nearest(name, self.names)}")
        return torch.tensor([[numbers[name.casefold()]] for name in names])

    def _known(self) -> str:
        more = f" and {len(self.names) - MAX_LISTED_NAMES} more" if len(self.names) > MAX_LISTED_NAMES else ""
        return f"the classes are {', '.join(self.names[:MAX_LISTED_NAMES])}{more}"


@dataclass(frozen=True)
class TextPrefix:
    """The tokens of the prompt, truncated or padded to the tokenizer's `max_length`."""

    tokenizer: Tokenizer

    @property
    def tokens(self) -> int:
        return len(self.tokenizer)

    def __call__(self, inputs: PriorInputs) -> Tensor:
        """(B, max_length)."""
        _reject(inputs, condition_map=True, advice="give a prompt")
        return self.tokenizer(inputs.prompts)


@dataclass(frozen=True)
class LayoutPrefix:
    """The bounding boxes that the prompt lists, as `length` tokens (see `bbox_tokens`)."""

    tokens: int
    length: int

    def __call__(self, inputs: PriorInputs) -> Tensor:
        """(B, length)."""
        _reject(inputs, condition_map=True, advice="list objects and their boxes in the prompt")
        return torch.tensor([layout_tokens(prompt, self.length, self.tokens) for prompt in inputs.prompts])


@dataclass(frozen=True)
class MapPrefix:
    """The codes of a condition map (semantic, edges, depth or a small image), encoded by the maps' own autoencoder.

    palette: the only colours that a semantic map may have; any if it is empty.
    """

    autoencoder: VQModel
    kind: MapKind
    palette: tuple[tuple[int, int, int], ...] = ()

    @property
    def tokens(self) -> int:
        return self.autoencoder.config.quantizer.codes

    @torch.no_grad()
    def __call__(self, inputs: PriorInputs) -> Tensor:
        """(B, h, w), the size of the image's code grid."""
        _reject(inputs, prompts=True, advice="give a map with --map")
        if inputs.condition_map is None:
            raise DaguerreError(f"This prior needs a condition map ({self.kind}); give one with --map.")
        height, width = (side * self.autoencoder.downsample_factor for side in inputs.grid)
        if inputs.condition_map.shape[-2:] != (height, width):
            given = f"{inputs.condition_map.shape[-1]}×{inputs.condition_map.shape[-2]}"
            raise DaguerreError(f"The map has {given} pixels; it must be as large as the image, {width}×{height}.")
        if self.palette:
            check_palette(inputs.condition_map, self.palette)
        x = map_channels(inputs.condition_map, self.autoencoder.config.in_channels).to(next(self.autoencoder.parameters()))
        return self.autoencoder.encode_codes(x).expand(len(inputs), -1, -1)


@dataclass(frozen=True)
class CoordinatePrefix:
    """The coordinates of each code as one of `tokens` numbers, for images whose statistics depend on the position (section 4.3)."""

    tokens: int
    downsample_factor: int

    def __call__(self, inputs: PriorInputs) -> Tensor:
        """(B, h, w)."""
        _reject(inputs, prompts=True, condition_map=True, advice="remove it")
        height, width = (side * self.downsample_factor for side in inputs.grid)
        coordinates = coordinate_codes(height, width, codes=self.tokens, downsample_factor=self.downsample_factor)
        return coordinates.clamp(max=self.tokens - 1).expand(len(inputs), -1, -1)


def map_channels(x: Tensor, channels: int) -> Tensor:
    """A condition map x (B, 3, H, W) in [−1, 1] with the channels of its autoencoder: unchanged, or one-hot classes if x is a class map,
    whose grey values are class numbers. Raises DaguerreError for an unknown class."""
    if channels == x.shape[1]:
        return x
    classes = to_uint8(x)[..., 0].to(x.device).long()  # (B, H, W)
    if classes.max() >= channels or (x != x[:, :1]).any():
        raise DaguerreError(f"The map is not a class map: its pixels must be grey, with class numbers from 0 to {channels - 1} as values.")
    return F.one_hot(classes, channels).movedim(-1, 1)


def check_palette(x: Tensor, palette: Sequence[tuple[int, int, int]]) -> None:
    """Raise DaguerreError if a map x (B, 3, H, W) in [−1, 1] has a colour that is not in the palette."""
    pixels = to_uint8(x).to(x.device).long().flatten(0, -2)  # (N, 3)
    known = (pixels[:, None] == torch.tensor(palette, device=pixels.device)).all(dim=2).any(dim=1)  # (N,)
    if not known.all():
        share = (~known).float().mean().item()
        colours = ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in palette)
        raise DaguerreError(
            f"{share:.0%} of the map's pixels, such as {tuple(pixels[~known][0].tolist())}, have no class; the colours must be {colours}. "
            "Save the map as PNG without smoothing."
        )


def _reject(inputs: PriorInputs, *, prompts: bool = False, condition_map: bool = False, advice: str) -> None:
    """Raise DaguerreError for inputs that the prior does not use."""
    if prompts and any(inputs.prompts):
        prompt = next(filter(None, inputs.prompts))
        raise DaguerreError(f"This prior takes no prompt, so {prompt[:60]!r} would have no effect; {advice}.")
    if condition_map and inputs.condition_map is not None:
        raise DaguerreError(f"This prior takes no condition map; {advice}.")


Prefixes = EmptyPrefix | ClassPrefix | TextPrefix | LayoutPrefix | MapPrefix | CoordinatePrefix
