"""Convolutions with fewer multiplications against float64."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import prepack
from daguerre.nn.cpu.upsample_conv import upsample_conv2d
from daguerre.nn.cpu.winograd import winograd_conv2d
from tests.tolerance import assert_as_accurate, assert_rounded


class Algorithm(NamedTuple):
    """A convolution with fewer multiplications, and the layer before it that it includes."""

    run: Callable[..., Tensor]
    layer: nn.Module
    factor: float  # of the error bound ε·√n; Winograd's transforms amplify rounding errors


ALGORITHMS = [Algorithm(winograd_conv2d, nn.Identity(), 16), Algorithm(upsample_conv2d, nn.Upsample(scale_factor=2), 4)]
both = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["winograd", "upsample"])


def check(algorithm: Algorithm, x: Tensor, weight: Tensor, bias: Tensor | None, **options: int) -> None:
    y = algorithm.run(x, weight, bias, **options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    truth = F.conv2d(algorithm.layer(x.double()), weight.double(), None if bias is None else bias.double(), padding=1)
    assert_rounded(y, truth, 9 * x.shape[1], factor=algorithm.factor)


@pytest.mark.parametrize(
    ("batch", "channels", "out", "height", "width"),
    [(4, 1, 2, 1, 1), (2, 3, 5, 4, 4), (1, 8, 1, 5, 7), (3, 1, 6, 9, 2), (2, 320, 64, 18, 31), (1, 64, 700, 12, 8)],
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@both
def test_equals_the_convolution_and_changes_no_input(
    algorithm: Algorithm, batch: int, channels: int, out: int, height: int, width: int, biased: bool, order: torch.memory_format
):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=order)
    weight = torch.randn(out, channels, 3, 3).contiguous(memory_format=order)
    before = x.clone(), weight.clone()
    check(algorithm, x, weight, torch.randn(out) if biased else None)
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


@pytest.mark.parametrize("elements", [1, 100, 300, 1000, 4000])
@both
def test_chunks_of_images_and_kernels_join(algorithm: Algorithm, elements: int):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8, 22, 13), torch.randn(40, 8, 3, 3), torch.randn(40)
    check(algorithm, x, weight, bias, elements_per_chunk=elements, kernels_per_chunk=24)


def test_the_error_stays_small_in_long_sums():
    torch.manual_seed(0)
    x, weight = F.silu(torch.randn(1, 1280, 16, 16)), torch.randn(32, 1280, 3, 3) / (9 * 1280) ** 0.5
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    assert_as_accurate(winograd_conv2d(x, weight, None), F.conv2d(x, weight, padding=1), truth)


@pytest.mark.parametrize(
    ("conv", "dtype", "side"),
    [
        (nn.Conv2d(256, 256, 3, padding=1), torch.float32, 32),
        (nn.Conv2d(256, 256, 3, padding=1, bias=False), torch.float32, 33),
        (nn.Conv2d(32, 32, 3, padding=1), torch.bfloat16, 16),
        (nn.Conv2d(256, 256, 3, padding=1), torch.float32, 16),
        (nn.Conv2d(8, 256, 3, padding=1), torch.float32, 32),
        (nn.Conv2d(256, 256, 3), torch.float32, 32),
        (nn.Conv2d(256, 256, 3, padding=1, stride=2), torch.float32, 32),
        (nn.Conv2d(256, 256, 3, padding=1, groups=2), torch.float32, 32),
        (nn.Conv2d(256, 256, 3, padding=1, dilation=2), torch.float32, 32),
        (nn.Conv2d(256, 256, 1), torch.float32, 32),
    ],
)
@torch.no_grad()
def test_every_kind_of_prepacked_convolution(conv: nn.Conv2d, dtype: torch.dtype, side: int):
    if not cpu_linear.supports(dtype):
        pytest.skip(f"torch has no oneDNN products in {dtype} here")
    network, x = nn.Sequential(conv).to(dtype), torch.randn(2, conv.in_channels, side, side).to(dtype)
    y, reference = prepack(network)(x), network(x)
    assert_as_accurate(y, reference, network.double()(x.double()))
