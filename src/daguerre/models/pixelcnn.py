"""Gated PixelCNN: causal convolutions in raster order with gates  y = tanh(a + V_a c) ⊙ σ(b + V_b c).

Two stacks avoid a blind spot: the vertical stack covers the rows above and feeds the horizontal stack over the current row.
(van den Oord et al. 2016, arXiv:1606.05328, section 2 and figure 2; over the codes of a VQ-VAE: 2017, arXiv:1711.00937, section 4.)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import CodePrior
from daguerre.models.vector_quantizer import check_codes


@dataclass(frozen=True)
class PixelCNNConfig:
    """codes: codebook size. classes: number of class labels; 0 is unconditional. The first layer has kernel size `first_kernel`."""

    codes: int = 512
    width: int = 256
    layers: int = 15
    kernel: int = 3
    first_kernel: int = 7
    classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if any(kernel % 2 == 0 or kernel < 3 for kernel in (self.kernel, self.first_kernel)):
            raise DaguerreError(f"The kernel sizes are {self.kernel} and {self.first_kernel}; both must be odd and 3 or more.")


class CausalConv(nn.Conv2d):
    """A causal convolution: its kernel ends at its own row and, if `left`, at its own column. No masked weights."""

    def __init__(self, channels: int, out_channels: int, rows: int, columns: int, *, left: bool) -> None:
        """Kernel (rows, columns): the output row and those above; the output column and those to the left, or, unless `left`, centred."""
        super().__init__(channels, out_channels, (rows, columns))
        side = 0 if left else columns // 2
        self.margins = (columns - 1 - side, side, rows - 1, 0)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.margins))  # (B, C_out, h, w)


def shift_down(x: Tensor) -> Tensor:
    """Shift x (B, C, h, w) down by one row, with zeros in the first."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Shift x (B, C, h, w) right by one column, with zeros in the first."""
    return F.pad(x, (1, 0))[..., :-1]


def gate(x: Tensor) -> Tensor:
    """tanh(a)·σ(b), where x (B, 2C, h, w) is the concatenation of a and b: (B, C, h, w)."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """One layer of both stacks. The `first` one excludes the current code from the horizontal stack and has no residual."""

    checkpointed = True

    def __init__(self, width: int, kernel: int, classes: int, *, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.vertical = CausalConv(width, 2 * width, kernel // 2 + 1, kernel, left=False)
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = CausalConv(width, 2 * width, 1, kernel // 2 + (0 if first else 1), left=True)
        self.out = nn.Conv2d(width, width, 1)
        self.told = nn.Embedding(classes, 2 * width) if classes else None

    def forward(self, above: Tensor, row: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """above: the vertical stack; row: the horizontal stack; both (B, C, h, w). Returns both."""
        bias = self.told(label)[:, :, None, None] if self.told is not None and label is not None else 0.0  # (B, 2C, 1, 1)
        v = self.vertical(above)  # (B, 2C, h, w), up to and including the current row
        h = self.horizontal(shift_right(row) if self.first else row) + self.down(shift_down(v))  # (B, 2C, h, w), only earlier codes
        y = self.out(gate(h + bias))
        return gate(v + bias), y if self.first else row + y


class PixelCNN(CodePrior):
    """A prior over grids of codes of any size; with `classes`, its condition is a class label (B,) or (B, 1)."""

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
        """Logits (B, h, w, K) for each position of codes (B, h, w). Raises DaguerreError for codes or labels out of range."""
        label = class_labels(condition, self.config.classes, len(codes))
        above = row = self.embed(check_codes(codes, self.config.codes)).movedim(-1, 1)  # (B, C, h, w)
        for layer in self.layers:
            above, row = layer(above, row, label)
            row = self.drop(row)
        return self.head(row).movedim(1, -1)


def class_labels(condition: Tensor | None, classes: int, batch: int) -> Tensor | None:
    """Class labels (B,) from a condition (B,) or (B, 1); None for an unconditional prior.

    Raises:
        DaguerreError: there is not one label in range per image, or the prior is unconditional and a condition is given.
    """
    if not classes:
        if condition is not None:
            raise DaguerreError("This prior is unconditional; leave out the condition.")
        return None
    if condition is None or condition.numel() != batch:
        given = "nothing" if condition is None else f"{tuple(condition.shape)}"
        raise DaguerreError(f"This prior needs one class label below {classes} for each of {batch} images; {given} was given.")
    if torch.any((condition < 0) | (condition >= classes)):
        raise DaguerreError(
            f"The class labels range from {int(condition.min())} to {int(condition.max())}; this prior has 0 to {classes - 1}."
        )
    return condition.reshape(batch)
