"""Prepacked upsampling layers against float64; `test_winograd` tests the algorithm itself."""

import copy

import pytest
import torch

from daguerre.nn.circular import circular_padding
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.prepack import prepack, upcast_on_use
from daguerre.nn.resample import Upsample
from tests.tolerance import assert_as_accurate


@pytest.mark.parametrize(
    ("channels", "side", "dtype", "size"),
    [
        (256, 8, torch.float32, None),
        (256, 8, torch.float32, (16, 16)),
        (256, 8, torch.float32, (15, 16)),
        (256, 2, torch.float32, None),
        (64, 32, torch.float32, None),
        (32, 8, torch.bfloat16, None),
    ],
)
@torch.no_grad()
def test_every_kind_of_prepacked_upsampling(channels: int, side: int, dtype: torch.dtype, size: tuple[int, int] | None):
    if not cpu_linear.supports(dtype):
        pytest.skip(f"torch has no oneDNN products in {dtype} here")
    upsample, x = Upsample(channels).to(dtype), torch.randn(2, channels, side, side).to(dtype)
    y, reference = prepack(upsample)(x, size), upsample(x, size)
    assert_as_accurate(y, reference, upsample.double()(x.double(), size))


@torch.no_grad()
def test_half_precision_weights_are_converted_in_use():
    upsample, x = Upsample(256), torch.randn(2, 256, 8, 8)
    upsample.conv.weight.data = upsample.conv.weight.half()
    packed = prepack(upsample, copies=False)
    assert upcast_on_use(packed) == {"conv.weight"}
    y = packed(x)
    assert torch.equal(prepack(upsample, copies=False)(x), y)
    assert_as_accurate(y, upsample.float()(x), copy.deepcopy(upsample).double()(x.double()))


@torch.no_grad()
def test_circular_padding_remains():
    upsample, x = Upsample(256), torch.randn(1, 256, 16, 16)
    circular = circular_padding(upsample, "both")
    truth = circular_padding(copy.deepcopy(upsample).double(), "both")(x.double())
    assert_as_accurate(prepack(circular)(x), circular(x), truth)
