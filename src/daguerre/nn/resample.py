"""The layers that halve and double the resolution of feature maps (Ho et al. 2020, arXiv:2006.11239, in their code)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU from this many places on (B·H·W), one transposed convolution beats an enlargement followed by a convolution.
FUSED_PLACES = 1024


class Downsample(nn.Module):
    """3×3 convolution of stride 2; padding 1 on all sides, or 0 for DDPM's and the autoencoders' one line at the right and the bottom."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Nearest neighbours, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """size: (H_out, W_out) where it is not exactly the double, as in a UNet whose input does not divide evenly."""
        B, _, H, W = x.shape
        if is_exact_2x(x, size) and x.device.type == "cpu" and B * H * W >= FUSED_PLACES:
            weight = self.conv.weight.to(torch.promote_types(self.conv.weight.dtype, x.dtype))  # it may be kept in half precision
            return F.conv_transpose2d(x, doubling_kernel(weight), self.conv.bias, stride=2, padding=1)  # (B, C, 2H, 2W)
        return self.conv(F.interpolate(x, size=[2 * H, 2 * W] if size is None else list(size)))  # (B, C, H_out, W_out)


def is_exact_2x(x: Tensor, size: Sequence[int] | None) -> bool:
    """Whether (H_out, W_out), where it is told, is twice that of x (B, C, H, W)."""
    return size is None or [*size] == [2 * side for side in x.shape[2:]]


def doubling_kernel(weight: Tensor) -> Tensor:
    """The 4×4 kernel whose transposed convolution of stride 2 equals doubling by nearest neighbours and convolving with `weight`.

    Four of nine multiplications remain, and the enlarged map is never written. weight: (C_out, C_in, 3, 3). Returns (C_in, C_out, 4, 4).
    """
    flipped = weight.flip(2, 3).transpose(0, 1)  # (C_in, C_out, 3, 3)
    wide = F.pad(flipped, (0, 1)) + F.pad(flipped, (1, 0))  # (C_in, C_out, 3, 4)
    return F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))  # (C_in, C_out, 4, 4)
