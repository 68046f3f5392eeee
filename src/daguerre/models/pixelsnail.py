"""PixelSNAIL: causal convolutions for the neighbourhood, causal attention over all earlier codes  (Chen et al. 2018, arXiv:1712.09763).

    block:  x ← gated residual convolutions(x);  a ← softmax(q(x, g)·k(x, g, c)ᵀ, strictly causal)·v;  x ← x + ELU network(x, a)

with c the code embeddings and g the coordinates of each position (sections 3 and 4, figure 3).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import CodePrior
from daguerre.models.pixelcnn import CausalConv, class_labels, shift_down, shift_right
from daguerre.models.vector_quantizer import check_codes


@dataclass(frozen=True)
class PixelSNAILConfig:
    """Each of `blocks` has `layers` residual convolutions and one attention. key_width: queries and keys, over all heads."""

    codes: int = 512
    width: int = 256
    blocks: int = 4
    layers: int = 4
    kernel: int = 3
    heads: int = 8
    key_width: int = 64
    classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.key_width % self.heads or self.width % self.heads:
            raise DaguerreError(
                f"{self.heads} heads do not divide width {self.width} and key_width {self.key_width}; choose a divisor of both."
            )


class ResidualConv(nn.Module):
    """x + a·σ(b), where a and b come from two causal convolutions."""

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__()
        C, rows = config.width, config.kernel // 2 + 1
        self.conv1 = CausalConv(C, C, rows, rows, left=True)
        self.conv2 = CausalConv(C, 2 * C, rows, rows, left=True)
        self.drop = nn.Dropout(config.dropout)
        self.told = nn.Embedding(config.classes, 2 * C) if config.classes else None

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.conv2(self.drop(F.elu(self.conv1(F.elu(x)))))  # (B, 2C, h, w)
        if self.told is not None and label is not None:
            h = h + self.told(label)[:, :, None, None]
        return x + F.glu(h, dim=1)


class StrictCausalAttention(nn.Module):
    """Each position attends to the positions strictly before it and to a zero key and value, the only one of the first position."""

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__()
        C = config.width
        self.heads = config.heads
        self.to_q = nn.Conv2d(C + 2, config.key_width, 1)
        self.to_kv = nn.Conv2d(2 * C + 2, config.key_width + C, 1)
        self.key_width = config.key_width

    def forward(self, x: Tensor, content: Tensor, coordinates: Tensor) -> Tensor:
        """x, content: (B, C, h, w); only `content` depends on the position's own code. coordinates: (B, 2, h, w). Returns (B, C, h, w)."""
        q = self._heads(self.to_q(torch.cat([x, coordinates], dim=1)))  # (B, heads, hw, d)
        kv = self.to_kv(torch.cat([content, x, coordinates], dim=1))
        # Shifted by one position, so that causal attention (up to itself) becomes strictly causal (before itself).
        k, v = (F.pad(self._heads(y), (0, 0, 1, 0))[:, :, :-1] for y in kv.split([self.key_width, kv.shape[1] - self.key_width], dim=1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, hw, C/heads)
        return y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])

    def _heads(self, x: Tensor) -> Tensor:
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # (B, heads, hw, d)


class PixelSNAILBlock(nn.Module):
    """Residual convolutions, attention, and a 1×1 network that combines them."""

    checkpointed = True

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__()
        C = config.width
        self.convolutions = nn.ModuleList(ResidualConv(config) for _ in range(config.layers))
        self.attention = StrictCausalAttention(config)
        self.join = nn.Conv2d(2 * C, C, 1)
        self.out = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor, content: Tensor, coordinates: Tensor, label: Tensor | None) -> Tensor:
        h = x
        for convolution in self.convolutions:
            h = convolution(h, label)  # (B, C, h, w)
        y = self.join(torch.cat([F.elu(h), F.elu(self.attention(h, content, coordinates))], dim=1))
        return h + self.out(F.elu(y))


class PixelSNAIL(CodePrior):
    """A prior over grids of codes of any size; with `classes`, its condition is a class label (B,) or (B, 1)."""

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__()
        self.config = config
        C, rows = config.width, config.kernel // 2 + 1
        self.embed = nn.Embedding(config.codes, C)
        self.above = CausalConv(C, C, rows, config.kernel + 2, left=False)
        self.left = CausalConv(C, C, rows, rows, left=True)
        self.blocks = nn.ModuleList(PixelSNAILBlock(config) for _ in range(config.blocks))
        self.head = nn.Conv2d(C, config.codes, 1)

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, h, w, K) for each position of codes (B, h, w). Raises DaguerreError for codes or labels out of range."""
        label = class_labels(condition, self.config.classes, len(codes))
        content = self.embed(check_codes(codes, self.config.codes)).movedim(-1, 1)  # (B, C, h, w)
        coordinates = coordinate_channels(content)  # (B, 2, h, w)
        x = shift_down(self.above(content)) + shift_right(self.left(content))  # (B, C, h, w), only earlier codes
        for block in self.blocks:
            x = block(x, content, coordinates, label)
        return self.head(F.elu(x)).movedim(1, -1)


def coordinate_channels(x: Tensor) -> Tensor:
    """Row and column of each position of x (B, C, h, w), scaled to −½ … ½: (B, 2, h, w)."""
    rows, columns = (torch.linspace(-0.5, 0.5, n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(x), -1, -1, -1)
