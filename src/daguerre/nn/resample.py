"""Layers that halve and double the resolution of feature maps (from the code of Ho et al. 2020, arXiv:2006.11239)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Downsample(nn.Module):
    """3×3 convolution of stride 2.

    padding: 1 on all sides, or 0 for one column at the right and one row at the bottom (DDPM and the autoencoders).
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """size: (H_out, W_out), by default twice the input; a UNet gives it if its input does not divide evenly."""
        return self.conv(F.interpolate(x, size=[2 * side for side in x.shape[2:]] if size is None else list(size)))  # (B, C, H_out, W_out)


def is_exact_2x(x: Tensor, size: Sequence[int] | None) -> bool:
    """True if (H_out, W_out) is twice the size of x (B, C, H, W), or not given."""
    return size is None or [*size] == [2 * side for side in x.shape[2:]]
