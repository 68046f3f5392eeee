"""Doubling by one transposed convolution is exactly nearest neighbours and a convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn.resample import FUSED_PLACES, Downsample, Upsample, doubling_kernel


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 3)])
def test_the_doubling_kernel_equals_enlarging_and_convolving(size: tuple[int, int]):
    x, weight = noise(2, 4, *size).requires_grad_(), noise(3, 4, 3, 3, seed=1).requires_grad_()
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)
    fused = F.conv_transpose2d(x, doubling_kernel(weight), stride=2, padding=1)
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-13)
    out = noise(*plain.shape, seed=2)
    for ours, theirs in zip(torch.autograd.grad(fused, (x, weight), out), torch.autograd.grad(plain, (x, weight), out), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("places", [FUSED_PLACES // 2, FUSED_PLACES])
def test_upsample_is_the_same_however_many_places(places: int):
    upsample = Upsample(2).double()
    x = noise(places // 64, 2, 8, 8)
    torch.testing.assert_close(upsample(x), upsample.conv(F.interpolate(x, scale_factor=2.0)), rtol=0, atol=1e-14)


def test_upsample_reaches_an_uneven_size():
    upsample = Upsample(2).double()
    x = noise(FUSED_PLACES // 64, 2, 8, 8)
    enlarged = F.interpolate(x, size=[15, 16])
    torch.testing.assert_close(upsample(x, (15, 16)), upsample.conv(enlarged), rtol=0, atol=0)


def test_downsample_pads_all_sides_or_the_far_ones():
    x = noise(1, 2, 6, 6)
    even, far = Downsample(2).double(), Downsample(2, padding=0).double()
    far.load_state_dict(even.state_dict())
    # Stride 2 looks at the even places of what a convolution of stride 1 sees; padding at the far sides moves the view by one.
    dense = F.conv2d(F.pad(x, (1, 1, 1, 1)), even.conv.weight, even.conv.bias)
    torch.testing.assert_close(even(x), dense[:, :, ::2, ::2], rtol=0, atol=1e-14)
    torch.testing.assert_close(far(x), dense[:, :, 1::2, 1::2], rtol=0, atol=1e-14)
