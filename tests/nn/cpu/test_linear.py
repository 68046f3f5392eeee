"""Matrix products against float64, by whichever library the processor prefers; `test_torch_private` tests oneDNN on its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import prepack
from tests.tolerance import assert_as_accurate, assert_rounded

pytestmark = pytest.mark.skipif(not cpu_linear.supports(torch.float32), reason="this build of torch has no oneDNN")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def linear64(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 9), (4, 9), (2, 3, 9)])
@torch.no_grad()
def test_linear_and_geglu(shape: tuple[int, ...], biased: bool):
    x, value, gate = noise(*shape), noise(5, 9), noise(6, 9)[1:]
    b, c = (noise(5), noise(7)[2:]) if biased else (None, None)
    truth = linear64(x, value, b)
    assert_rounded(cpu_linear.linear(x, value, b), truth, 9)
    assert_rounded(cpu_linear.linear(x, cpu_linear.reorder_weight(value, x), b), truth, 9)
    assert_rounded(cpu_linear.geglu(x, value, gate, b, c), truth * F.gelu(linear64(x, gate, c)), 9)


@pytest.mark.parametrize("rows", [1, 2, 16])
@torch.no_grad()
def test_results_do_not_depend_on_the_alignment_of_a_weight(rows: int):
    """It differs between a single file and a folder, and images from both must be the same."""
    x, value, gate, b = noise(rows, 128), noise(16, 128), noise(17, 128)[1:], noise(16)
    expected = cpu_linear.linear(x, value, b), cpu_linear.geglu(x, value, gate, b, b)
    for offset in (1, 2, 4, 8):
        moved = [torch.empty(16 * 128 + offset)[offset:].view(16, 128).copy_(weight) for weight in (value, gate)]
        assert torch.equal(cpu_linear.linear(x, moved[0], b), expected[0])
        assert torch.equal(cpu_linear.geglu(x, *moved, b, b), expected[1])


@torch.no_grad()
def test_batched_linear():
    x, weights = noise(6, 4, 9), noise(7, 5, 9)[:6]
    for y, one, weight in zip(cpu_linear.batched_linear(x, weights), x, weights, strict=True):
        assert_rounded(y, linear64(one, weight, None), 9)


@pytest.mark.parametrize(
    ("kernel", "padding", "stride"), [(3, (1, 1), (1, 1)), (3, (0, 2), (2, 1)), (1, (0, 0), (2, 2)), (4, (1, 0), (1, 3))]
)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_a_convolution_as_one_product(
    kernel: int, padding: tuple[int, int], stride: tuple[int, int], order: torch.memory_format, biased: bool
):
    x, weight = noise(2, 5, 7, 6).contiguous(memory_format=order), noise(8, 5, kernel, kernel).contiguous(memory_format=order)
    bias = noise(8) if biased else None
    y = cpu_linear.im2col_conv2d(x, weight, bias, stride, padding)
    assert y.is_contiguous(memory_format=torch.channels_last)
    truth = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), stride, padding)
    assert_rounded(y, truth, 5 * kernel**2)


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (16, 2)])
@torch.no_grad()
def test_a_prepacked_convolution_with_many_channels_on_a_small_map(side: int, stride: int):
    conv, x = torch.nn.Conv2d(1024, 1024, 3, stride, padding=1), noise(2, 1024, side, side)
    truth = F.conv2d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), stride, 1)
    assert_as_accurate(prepack(conv, copies=False)(x), conv(x), truth)


def test_onednn_computes_all_of_bfloat16_and_nothing_in_float64():
    assert cpu_linear.prefers_onednn(torch.bfloat16) == cpu_linear.supports(torch.bfloat16)
    assert not cpu_linear.supports(torch.float64)
