"""A first stage and an autoregressive prior over its codes, as one frozen bundle.

    condition ─ prefix ─► tokens ─┐
    noise ─────────────────────► prior ─► codes, row by row ─ autoencoder ─► image

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
    """The inputs of a prior: B prompts, which may be empty; (rows, columns) of the code grid; an optional condition map (1 or B, 3, H, W)
    in [−1, 1]."""

    prompts: Sequence[str]
    grid: tuple[int, int]
    condition_map: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)


class Prefix(Protocol):
    """Encodes the inputs of a prior as condition tokens below `tokens`: (B, P), a grid (B, h, w), or None.

    Raises DaguerreError for inputs that the prior does not support.
    """

    @property
    def tokens(self) -> int: ...

    def __call__(self, inputs: PriorInputs, /) -> Tensor | None: ...


@dataclass(frozen=True)
class LatentPrior:
    """sample_size: image side in pixels in training. files: the weight files, if loaded from files."""

    prior: Prior
    autoencoder: VQModel
    prefix: Prefix
    name: str
    sample_size: int
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        codes = self.autoencoder.config.quantizer.codes
        if self.prior.config.codes != codes:
            raise DaguerreError(
                f"The prior has {self.prior.config.codes} codes and the first stage {codes}; they must be the same codebook."
            )

    @property
    def min_grid(self) -> tuple[int, int]:
        """(rows, columns) of the smallest grid that can be sampled: a transformer's window, else (1, 1)."""
        return self.prior.config.grid if isinstance(self.prior, TransformerPrior) else (1, 1)

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.prior.parameters()).dtype

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The parts with weights."""
        parts = self.prior, self.autoencoder, getattr(self.prefix, "autoencoder", None)
        return tuple(part for part in parts if isinstance(part, nn.Module))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights in place, as `nn.Module.to` does; returns the same bundle."""
        for module in self.modules:
            module.to(device=device, dtype=dtype)
        return self
