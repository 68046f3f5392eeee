"""Group norm in either memory format equals PyTorch's in float64 and keeps the memory format of its input."""

import pytest
import torch
import torch.nn.functional as F

from daguerre.nn.norm import GroupNorm, GroupNormSiLU
from tests.tolerance import assert_rounded


# Few and many positions; channels per group that do and do not fill a vector: each meets the memory format that is faster for it.
@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
@pytest.mark.parametrize(("channels", "size"), [(24, (5, 7)), (24, (20, 20)), (64, (5, 7))])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equals_float64_with_gradients_and_keeps_the_memory_format(
    kind: type[GroupNorm], channels: int, size: tuple[int, int], order: torch.memory_format, dtype: torch.dtype
):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, channels, *size, generator=generator).to(dtype).contiguous(memory_format=order).requires_grad_()
    layer = kind(4, channels, dtype=dtype)
    torch.nn.init.normal_(layer.weight, generator=generator)
    torch.nn.init.normal_(layer.bias, generator=generator)
    y = layer(x)
    assert y.is_contiguous(memory_format=order)
    x_true = x.detach().double().requires_grad_()
    truth = F.group_norm(x_true, 4, layer.weight.double(), layer.bias.double(), 1e-5)
    truth = F.silu(truth) if kind is GroupNormSiLU else truth
    assert_rounded(y, truth)
    weight = torch.randn(truth.shape, generator=generator)
    (y.double() * weight).sum().backward()
    (truth * weight).sum().backward()
    assert x.grad is not None
    assert x_true.grad is not None
    assert_rounded(x.grad, x_true.grad)
