"""A packed twin doubles by nine products where that pays; that they are right is seen beside Winograd's."""

import pytest
import torch

from daguerre.nn.circular import circular_padding
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu import upsample_conv
from daguerre.nn.cpu.prepack import prepack, upcast_on_use
from daguerre.nn.resample import Upsample


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
    monkeypatch.setattr(upsample_conv, "omp_wait_is_passive", lambda: True)
    calls, convolution = [], upsample_conv.upsample_conv2d
    monkeypatch.setattr(upsample_conv, "upsample_conv2d", lambda *given: calls.append(given) or convolution(*given))
    upsample, x = Upsample(channels).to(dtype), torch.randn(2, channels, side, side, dtype=dtype)
    twin = prepack(upsample)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(twin(x, size), upsample(x, size), atol=tolerance, rtol=tolerance)
    assert bool(calls) == (taken and cpu_linear.supports(dtype))


@torch.no_grad()
def test_weights_in_half_precision_are_converted_where_they_are_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upsample_conv, "omp_wait_is_passive", lambda: True)
    upsample, x = Upsample(256), torch.randn(2, 256, 8, 8)
    upsample.conv.weight.data = upsample.conv.weight.half()
    twin = prepack(upsample, copies=False)
    assert upcast_on_use(twin) == {"conv.weight"}
    answer = twin(x)
    torch.testing.assert_close(answer, upsample.float()(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(prepack(upsample, copies=False)(x), answer)


@torch.no_grad()
def test_a_torus_stays_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upsample_conv, "omp_wait_is_passive", lambda: True)
    torus, x = circular_padding(Upsample(256), "both"), torch.randn(1, 256, 16, 16)
    torch.testing.assert_close(prepack(torus)(x), torus(x), atol=1e-5, rtol=1e-5)
