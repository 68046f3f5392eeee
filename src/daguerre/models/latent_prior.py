"""A first stage and a prior over its codes, as one frozen bundle.

    what is told ─ prefix ─► tokens ─┐
    randomness ───────────────────► prior ─► codes, row by row ─ autoencoder ─► picture

VQ-VAE with PixelCNN (van den Oord et al. 2017, arXiv:1711.00937), VQGAN with a transformer (Esser et al. 2021, arXiv:2012.09841, figure 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.pixelcnn import PixelCNN
from daguerre.models.pixelsnail import PixelSNAIL
from daguerre.models.transformer_prior import TransformerPrior
from daguerre.models.vq_model import VQModel

Prior = TransformerPrior | PixelCNN | PixelSNAIL


@dataclass(frozen=True)
class PriorInputs:
    """What is asked for: a text for each of B pictures, which may be empty; the rows and columns of their codes; and a map, where there
    is one, (1 or B, 3, H, W) in [−1, 1]."""

    prompts: Sequence[str]
    grid: tuple[int, int]
    map: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)


class Prefix(Protocol):
    """How a prior is told: what stands before a picture's codes, as a row (B, P) or a grid (B, h, w) of tokens below `tokens`, or nothing.

    Raises DaguerreError for what the prior cannot be told.
    """

    @property
    def tokens(self) -> int: ...

    def __call__(self, told: PriorInputs) -> Tensor | None: ...


@dataclass(frozen=True)
class LatentPrior:
    """size: the side in pixels of the pictures that the prior was trained on. files: with the weights, where it was read from files."""

    prior: Prior
    autoencoder: VQModel
    prefix: Prefix
    name: str
    sample_size: int
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        codes = self.autoencoder.config.quantizer.codes
        if self.prior.config.codes != codes:
            raise DaguerreError(f"The prior is over {self.prior.config.codes} codes, the first stage has {codes}.")

    @property
    def min_grid(self) -> tuple[int, int]:
        """Rows and columns of the smallest grid that is drawn: a transformer's window, any for the others."""
        return self.prior.config.grid if isinstance(self.prior, TransformerPrior) else (1, 1)

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.prior.parameters()).dtype

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The parts that have weights."""
        parts = self.prior, self.autoencoder, getattr(self.prefix, "autoencoder", None)
        return tuple(part for part in parts if isinstance(part, nn.Module))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights, in place, as torch does; returns the same bundle."""
        for module in self.modules:
            module.to(device=device, dtype=dtype)
        return self
