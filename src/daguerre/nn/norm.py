"""Group normalisation, y = (x − E[x]) / √(Var[x] + ε) · γ + β

The mean and variance are over the channels of a group and all places. Wu and He 2018, arXiv:1803.08494.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU, in bfloat16 and channels last, PyTorch's kernel takes up to four times as long as the formula where there are no more places
# (H·W) and fewer channels in a group.
FEW_PLACES, FEW_CHANNELS = 256, 32


class GroupNorm(nn.GroupNorm):
    """PyTorch's, and the formula where that is quicker; computed in float32 either way."""

    def forward(self, input: Tensor) -> Tensor:
        return by_formula(self, input) if _quicker_by_formula(self, input) else super().forward(input)


class GroupNormSiLU(nn.GroupNorm):
    """Group norm followed by SiLU, x·σ(x): the pair that stands before every convolution of these networks."""

    def forward(self, input: Tensor) -> Tensor:
        if _quicker_by_formula(self, input):
            return by_formula(self, input, lambda y: F.silu(y, inplace=True))
        y = super().forward(input)
        return F.silu(y, inplace=not y.requires_grad)


def by_formula(norm: nn.GroupNorm, x: Tensor, then: Callable[[Tensor], Tensor] = lambda y: y) -> Tensor:
    """then(norm(x)) in half precision x (B, C, H, W), channels last; without gradients."""
    per_group = (norm.num_groups, -1)
    y = x.permute(0, 2, 3, 1).float()  # (B, H, W, C)
    mean, square = (m.mean((1, 2)).unflatten(1, per_group).mean(-1, keepdim=True) for m in (y, y.square()))  # each (B, G, 1)
    scale = (square - mean.square() + norm.eps).rsqrt() * norm.weight.float().unflatten(0, per_group)  # (B, G, C/G)
    shift = norm.bias.float().unflatten(0, per_group) - mean * scale
    y = then(y.mul_(scale.flatten(1)[:, None, None]).add_(shift.flatten(1)[:, None, None]))
    return y.to(x.dtype).permute(0, 3, 1, 2)


def _quicker_by_formula(norm: nn.GroupNorm, x: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and x.shape[2:].numel() <= FEW_PLACES
        and norm.num_channels < FEW_CHANNELS * norm.num_groups
        and x.is_contiguous(memory_format=torch.channels_last)
    )
