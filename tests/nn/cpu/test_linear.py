"""Products are cpu_linear, whichever library computes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import prepack


@pytest.fixture(params=[True, False], ids=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not cpu_linear.supports(torch.float32):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(cpu_linear, "_mkl_is_quicker", lambda: request.param)
    return request.param


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 9), (4, 9), (2, 3, 9)])
@torch.no_grad()
def test_one_and_the_two_of_a_geglu(library: bool, shape: tuple[int, ...], biased: bool):
    x, value, gate = noise(*shape), noise(5, 9), noise(6, 9)[1:]
    b, c = (noise(5), noise(7)[2:]) if biased else (None, None)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(cpu_linear.linear(x, value, b), F.linear(x, value, b), **close)
    torch.testing.assert_close(cpu_linear.linear(x, cpu_linear.reorder_weight(value, x), b), F.linear(x, value, b), **close)
    torch.testing.assert_close(cpu_linear.geglu(x, value, gate, b, c), F.linear(x, value, b) * F.gelu(F.linear(x, gate, c)), **close)


@pytest.mark.parametrize("rows", [1, 2, 16])
@torch.no_grad()
def test_answers_do_not_depend_on_where_a_weight_lies(library: bool, rows: int):
    """As it does elsewhere in a single file than in a folder, and the pictures of both are the same."""
    x, value, gate, b = noise(rows, 128), noise(16, 128), noise(17, 128)[1:], noise(16)
    wanted = cpu_linear.linear(x, value, b), cpu_linear.geglu(x, value, gate, b, b)
    for offset in (1, 2, 4, 8):
        moved = [torch.empty(16 * 128 + offset)[offset:].view(16, 128).copy_(weight) for weight in (value, gate)]
        assert torch.equal(cpu_linear.linear(x, moved[0], b), wanted[0])
        assert torch.equal(cpu_linear.geglu(x, *moved, b, b), wanted[1])


@torch.no_grad()
def test_several_at_a_time(library: bool):
    x, weights = noise(6, 4, 9), noise(7, 5, 9)[:6]
    for y, one, weight in zip(cpu_linear.batched_linear(x, weights), x, weights, strict=True):
        torch.testing.assert_close(y, one @ weight.t(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "padding", "stride"), [(3, (1, 1), (1, 1)), (3, (0, 2), (2, 1)), (1, (0, 0), (2, 2)), (4, (1, 0), (1, 3))]
)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_a_convolution_as_one_product(
    library: bool, kernel: int, padding: tuple[int, int], stride: tuple[int, int], order: torch.memory_format, biased: bool
):
    x, weight = noise(2, 5, 7, 6).contiguous(memory_format=order), noise(8, 5, kernel, kernel).contiguous(memory_format=order)
    bias = noise(8) if biased else None
    y = cpu_linear.im2col_conv2d(x, weight, bias, stride, padding)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, stride, padding), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "channels", "stride", "quicker"),
    [((2, 8, 8), 1024, 1, True), ((2, 16, 16), 1024, 2, True), ((3, 8, 8), 1024, 1, False), ((2, 8, 8), 512, 1, False)],
)
@torch.no_grad()
def test_a_packed_twin_takes_one_product_where_it_is_the_quickest(
    library: bool, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], channels: int, stride: int, quicker: bool
):
    calls, convolution = [], cpu_linear.im2col_conv2d
    monkeypatch.setattr(cpu_linear, "im2col_conv2d", lambda *given: calls.append(given) or convolution(*given))
    (batch, *sides), conv = shape, torch.nn.Conv2d(channels, channels, 3, stride, padding=1)
    x = noise(batch, channels, *sides)
    torch.testing.assert_close(prepack(conv, copies=False)(x), conv(x), atol=5e-5, rtol=1e-5)
    assert bool(calls) == (quicker and library)


def test_where_onednn_is_the_quickest(library: bool):
    assert cpu_linear.prefers_onednn(torch.float32) is not library
    assert cpu_linear.prefers_onednn(torch.bfloat16) == cpu_linear.supports(torch.bfloat16)
    assert not cpu_linear.supports(torch.float64)
