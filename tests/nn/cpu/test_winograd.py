"""Convolutions by fewer products are convolutions, to float32's precision, and a packed twin takes Winograd's where they pay."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.cpu import filtering, upsample_conv, winograd
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import prepack


class Way(NamedTuple):
    """A convolution by fewer multiplications, of which layers it does the work, and how close it must come."""

    run: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    layers: nn.Module
    error: float


WAYS = [Way(winograd.winograd_conv2d, nn.Identity(), 2e-6), Way(upsample_conv.upsample_conv2d, nn.Upsample(scale_factor=2), 5e-7)]
NAMES = ["Winograd's", "doubling"]


def error(way: Way, x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """Relative to the layers in float64."""
    y = way.run(x, weight, bias)
    exact = F.conv2d(way.layers(x.double()), weight.double(), None if bias is None else bias.double(), padding=1)
    assert y.shape == exact.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    return ((y - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("batch", "channels", "out", "height", "width"),
    [(1, 1, 1, 1, 1), (2, 3, 5, 4, 4), (1, 8, 1, 5, 7), (3, 1, 6, 9, 2), (2, 320, 64, 18, 31), (1, 64, 700, 12, 8)],
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_it_is_the_convolution(
    way: Way, batch: int, channels: int, out: int, height: int, width: int, biased: bool, order: torch.memory_format
):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=order)
    weight = torch.randn(out, channels, 3, 3).contiguous(memory_format=order)
    given = x.clone(), weight.clone()
    assert error(way, x, weight, torch.randn(out) if biased else None) < way.error
    assert torch.equal(x, given[0])
    assert torch.equal(weight, given[1])


@pytest.mark.parametrize("states", [1, 100, 300, 1000, 4000])
@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_parts_of_pictures_and_of_kernels_fit_together(monkeypatch: pytest.MonkeyPatch, way: Way, states: int):
    monkeypatch.setattr(winograd, "STATES", states)
    monkeypatch.setattr(winograd, "KERNELS", 24)
    monkeypatch.setattr(upsample_conv, "UPSAMPLE_STATES", states)
    monkeypatch.setattr(upsample_conv, "UPSAMPLE_KERNELS", 24)
    monkeypatch.setattr(filtering, "BLOCK", 3)
    x, weight, bias = torch.randn(3, 8, 22, 13), torch.randn(10, 8, 3, 3), torch.randn(10)
    assert error(way, x, weight, bias) < way.error


def test_the_error_stays_small_where_sums_are_long():
    x, weight = F.silu(torch.randn(1, 1280, 16, 16)), torch.randn(32, 1280, 3, 3) / (9 * 1280) ** 0.5
    assert error(WAYS[0], x, weight, None) < 4e-6


@pytest.mark.parametrize(
    ("conv", "dtype", "side", "taken"),
    [
        (nn.Conv2d(256, 256, 3, padding=1), torch.float32, 32, True),
        (nn.Conv2d(256, 256, 3, padding=1, bias=False), torch.float32, 33, True),
        (nn.Conv2d(256, 256, 3, padding=1), torch.bfloat16, 32, False),
        (nn.Conv2d(256, 256, 3, padding=1), torch.float32, 16, False),
        (nn.Conv2d(8, 256, 3, padding=1), torch.float32, 32, False),
        (nn.Conv2d(256, 256, 3), torch.float32, 32, False),
        (nn.Conv2d(256, 256, 3, padding=1, stride=2), torch.float32, 32, False),
        (nn.Conv2d(256, 256, 3, padding=1, groups=2), torch.float32, 32, False),
        (nn.Conv2d(256, 256, 3, padding=1, dilation=2), torch.float32, 32, False),
        (nn.Conv2d(256, 256, 1), torch.float32, 32, False),
    ],
)
@torch.no_grad()
def test_a_packed_twin_takes_it_where_it_pays(monkeypatch: pytest.MonkeyPatch, conv: nn.Conv2d, dtype: torch.dtype, side: int, taken: bool):
    monkeypatch.setattr(winograd, "omp_wait_is_passive", lambda: True)
    calls, convolution = [], winograd.winograd_conv2d
    monkeypatch.setattr(winograd, "winograd_conv2d", lambda *given: calls.append(given) or convolution(*given))
    network, x = nn.Sequential(conv).to(dtype), torch.randn(2, conv.in_channels, side, side, dtype=dtype)
    twin = prepack(network)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(twin(x), network(x), atol=tolerance, rtol=tolerance)
    assert bool(calls) == (taken and cpu_linear.supports(dtype))
