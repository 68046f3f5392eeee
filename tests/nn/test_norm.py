"""Group norm in either order of memory is PyTorch's in double precision, and answers in the order it was asked in."""

import pytest
import torch
import torch.nn.functional as F

from daguerre.nn import norm
from daguerre.nn.norm import GroupNorm, GroupNormSiLU


@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
@pytest.mark.parametrize("turned", [True, False])
def test_both_orders_of_memory_are_right_with_gradients(kind: type[GroupNorm], turned: bool, monkeypatch: pytest.MonkeyPatch):
    if not turned:
        monkeypatch.setattr(norm, "FEW_PLACES", 0)
    x = torch.randn(3, 24, 5, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = kind(4, 24, dtype=torch.bfloat16)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    assert norm._quicker_channels_first(layer, x) is turned
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    x_true = x.detach().double().requires_grad_()
    truth = F.group_norm(x_true, 4, layer.weight.double(), layer.bias.double(), 1e-5)
    truth = F.silu(truth) if kind is GroupNormSiLU else truth
    torch.testing.assert_close(y.double(), truth, rtol=2**-7, atol=0.02)
    weight = torch.randn_like(truth)
    (y.double() * weight).sum().backward()
    (truth * weight).sum().backward()
    assert x.grad is not None
    assert x_true.grad is not None
    assert (x.grad - x_true.grad).norm() < 0.02 * x_true.grad.norm()


def test_only_narrow_groups_on_few_places_in_bfloat16_are_turned():
    def turned(channels: int, size: int, dtype: torch.dtype = torch.bfloat16, layout: torch.memory_format = torch.channels_last) -> bool:
        x = torch.zeros(1, channels, size, size, dtype=dtype).contiguous(memory_format=layout)
        return norm._quicker_channels_first(GroupNorm(8, channels), x)

    assert turned(48, 8)
    assert not turned(128, 8)
    assert not turned(48, 32)
    assert not turned(48, 8, torch.float32)
    assert not turned(48, 8, layout=torch.contiguous_format)
