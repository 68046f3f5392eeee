"""Doubling by nine products is nearest neighbours and a convolution, to float32's precision, and a packed twin takes it where it pays."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn import doubling
from daguerre.nn.circular import circular
from daguerre.nn.packing import converts, packed
from daguerre.nn.resample import Upsample


def error(of: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """Relative to enlarging and convolving in float64."""
    wide = F.interpolate(x.double(), scale_factor=2.0)
    exact = F.conv2d(wide, weight.double(), None if bias is None else bias.double(), padding=1)
    assert of.shape == exact.shape
    return ((of - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("batch", "channels", "out", "height", "width"),
    [(1, 1, 1, 1, 1), (2, 3, 5, 4, 4), (1, 8, 1, 5, 7), (3, 1, 6, 9, 2), (2, 320, 64, 18, 31), (1, 64, 700, 12, 8)],
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_it_is_the_convolution_of_the_enlarged_map(
    batch: int, channels: int, out: int, height: int, width: int, biased: bool, order: torch.memory_format
):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=order)
    weight = torch.randn(out, channels, 3, 3).contiguous(memory_format=order)
    bias = torch.randn(out) if biased else None
    y = doubling.convolution(x, weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, x, weight, bias) < 5e-7


@pytest.mark.parametrize("states", [1, 100, 300, 1000, 4000])
def test_parts_of_pictures_and_of_kernels_fit_together(monkeypatch: pytest.MonkeyPatch, states: int):
    monkeypatch.setattr(doubling, "STATES", states)
    monkeypatch.setattr(doubling, "KERNELS", 24)
    x, weight, bias = torch.randn(3, 8, 11, 13), torch.randn(10, 8, 3, 3), torch.randn(10)
    assert error(doubling.convolution(x, weight, bias), x, weight, bias) < 5e-7


@pytest.mark.parametrize(
    ("channels", "side", "dtype", "size", "taken"),
    [
        (256, 8, torch.float32, None, True),
        (256, 8, torch.float32, (16, 16), True),
        (256, 8, torch.float32, (15, 16), False),
        (256, 8, torch.bfloat16, None, False),
        (256, 2, torch.float32, None, False),
        (64, 32, torch.float32, None, False),
    ],
)
@torch.no_grad()
def test_a_packed_twin_takes_it_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, channels: int, side: int, dtype: torch.dtype, size: tuple[int, int] | None, taken: bool
):
    monkeypatch.setattr(doubling, "waits_calmly", lambda: True)
    calls, convolution = [], doubling.convolution
    monkeypatch.setattr(doubling, "convolution", lambda *given: calls.append(given) or convolution(*given))
    upsample, x = Upsample(channels).to(dtype), torch.randn(2, channels, side, side, dtype=dtype)
    twin = packed(upsample)
    if twin is upsample:
        pytest.skip("this machine computes nothing of this dtype by oneDNN")
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(twin(x, size), upsample(x, size), atol=tolerance, rtol=tolerance)
    assert bool(calls) == taken


@torch.no_grad()
def test_weights_in_half_precision_are_converted_where_they_are_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doubling, "waits_calmly", lambda: True)
    upsample, x = Upsample(256), torch.randn(2, 256, 8, 8)
    upsample.conv.weight.data = upsample.conv.weight.half()
    twin = packed(upsample, copies=False)
    assert converts(twin) == {"conv.weight"}
    torch.testing.assert_close(twin(x), upsample.float()(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_torus_stays_one():
    torus, x = circular(Upsample(256), "both"), torch.randn(1, 256, 16, 16)
    torch.testing.assert_close(packed(torus)(x), torus(x), atol=1e-5, rtol=1e-5)
