"""Upsampling and downsampling against plain convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn.resample import Downsample, Upsample
from tests.tolerance import assert_rounded


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_upsample_repeats_every_pixel_then_convolves():
    upsample, x = Upsample(2).double(), noise(3, 2, 8, 5)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert_rounded(upsample(x), F.conv2d(repeated, upsample.conv.weight, upsample.conv.bias, padding=1), 18)


def test_upsample_reaches_an_odd_size():
    upsample, x = Upsample(2).double(), noise(16, 2, 8, 8)
    assert_rounded(upsample(x, (15, 16)), upsample.conv(F.interpolate(x, size=[15, 16])), 18)


def test_downsample_pads_all_sides_or_right_and_bottom():
    x = noise(1, 2, 6, 6)
    even, far = Downsample(2).double(), Downsample(2, padding=0).double()
    far.load_state_dict(even.state_dict())
    # Stride 2 takes every second output of stride 1; padding at the right and bottom shifts them by one.
    dense = F.conv2d(F.pad(x, (1, 1, 1, 1)), even.conv.weight, even.conv.bias)
    assert_rounded(even(x), dense[:, :, ::2, ::2], 18)
    assert_rounded(far(x), dense[:, :, 1::2, 1::2], 18)
