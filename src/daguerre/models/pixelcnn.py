"""Gated PixelCNN: convolutions that see only what comes before, in raster order, and gates  y = tanh(a + V_a c) ⊙ σ(b + V_b c).

Two stacks, so that no place before is left out: one over the rows above, which feeds one over the row itself.
(van den Oord et al. 2016, arXiv:1606.05328, section 2 and figure 2; over the codes of a VQ-VAE: 2017, arXiv:1711.00937, section 4.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import AS_TRAINED, Sampling, sample_raster
from daguerre.models.vector_quantizer import check_codes


@dataclass(frozen=True)
class PixelCNNConfig:
    """codes: of the first stage. classes: of the condition; 0 is none. kernel: of every layer but the first, which has `first_kernel`."""

    codes: int = 512
    width: int = 256
    layers: int = 15
    kernel: int = 3
    first_kernel: int = 7
    classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if any(kernel % 2 == 0 or kernel < 3 for kernel in (self.kernel, self.first_kernel)):
            raise DaguerreError(f"The kernels are {self.kernel} and {self.first_kernel}; both must be odd and 3 or more.")


class CausalConv(nn.Conv2d):
    """A convolution over (rows, columns) that ends at its own row, and, where `columns` is "left", at its own column.

    What a mask would hide is left out of the kernel instead.
    """

    def __init__(self, channels: int, out_channels: int, rows: int, columns: int, *, left: bool) -> None:
        """rows: its own and those above. columns: its own and those to the left, or, unless `left`, centred on its own."""
        super().__init__(channels, out_channels, (rows, columns))
        side = 0 if left else columns // 2
        self.margins = (columns - 1 - side, side, rows - 1, 0)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.margins))  # (B, C_out, h, w)


def shift_down(x: Tensor) -> Tensor:
    """(B, C, h, w) moved down by a row of zeros: each place holds what was above it."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """(B, C, h, w) moved to the right by a column of zeros: each place holds what was left of it."""
    return F.pad(x, (1, 0))[..., :-1]


def gate(x: Tensor) -> Tensor:
    """tanh(a)·σ(b) of (a, b) side by side, (B, 2C, h, w) to (B, C, h, w)."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks. first: its row's part does not see the code itself yet, and nothing is added to its input."""

    def __init__(self, width: int, kernel: int, classes: int, *, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.vertical = CausalConv(width, 2 * width, kernel // 2 + 1, kernel, left=False)
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = CausalConv(width, 2 * width, 1, kernel // 2 + (0 if first else 1), left=True)
        self.out = nn.Conv2d(width, width, 1)
        self.told = nn.Embedding(classes, 2 * width) if classes else None

    def forward(self, above: Tensor, row: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """above: the stack over rows up to this one; row: the one over this row's codes before. Both (B, C, h, w)."""
        bias = self.told(label)[:, :, None, None] if self.told is not None and label is not None else 0.0  # (B, 2C, 1, 1)
        v = self.vertical(above)  # (B, 2C, h, w), rows up to and with its own
        h = self.horizontal(shift_right(row) if self.first else row) + self.down(shift_down(v))  # (B, 2C, h, w), only what comes before
        y = self.out(gate(h + bias))
        return gate(v + bias), y if self.first else row + y


class PixelCNN(nn.Module):
    """A prior over grids of codes of any size, conditioned on a class (B,) or (B, 1) where it has classes."""

    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        self.config = config
        C, classes = config.width, config.classes
        self.embed = nn.Embedding(config.codes, C)
        self.layers = nn.ModuleList([GatedLayer(C, config.first_kernel, classes, first=True)])
        self.layers.extend(GatedLayer(C, config.kernel, classes) for _ in range(config.layers - 1))
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 1), nn.ReLU(), nn.Conv2d(C, config.codes, 1))

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, h, w, K) of codes (B, h, w), each given the class and the codes before it. Raises DaguerreError for wrong ones."""
        label = class_labels(condition, self.config.classes, len(codes))
        above = row = self.embed(check_codes(codes, self.config.codes)).movedim(-1, 1)  # (B, C, h, w)
        for layer in self.layers:
            above, row = layer(above, row, label)
            row = self.drop(row)
        return self.head(row).movedim(1, -1)

    def sample(
        self,
        grid: tuple[int, int],
        uniforms: Tensor,
        condition: Tensor | None = None,
        sampling: Sampling = AS_TRAINED,
        prefix_rows: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Draw grids (B, h, w) of any size; see `CodePrior`."""
        return sample_raster(self, grid, uniforms, condition, sampling, prefix_rows)


def class_labels(condition: Tensor | None, classes: int, batch: int) -> Tensor | None:
    """The class of each picture, (B,), of a condition (B,) or (B, 1); None where there are no classes.

    Raises:
        DaguerreError: a condition that is not one class for each picture, or one where none is known.
    """
    if not classes:
        if condition is not None:
            raise DaguerreError("This prior was made without classes; give no condition.")
        return None
    if condition is None or condition.numel() != batch:
        given = "nothing" if condition is None else f"{tuple(condition.shape)}"
        raise DaguerreError(f"This prior needs one of {classes} classes for each of {batch} pictures; {given} was given.")
    if torch.any((condition < 0) | (condition >= classes)):
        raise DaguerreError(f"The classes run from {int(condition.min())} to {int(condition.max())}; this prior knows 0 to {classes - 1}.")
    return condition.reshape(batch)
