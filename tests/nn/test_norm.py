"""Group norm by the formula equals PyTorch's in double precision, and is used where it should be."""

import pytest
import torch
import torch.nn.functional as F

from daguerre.nn import norm
from daguerre.nn.norm import GroupNorm, GroupNormSiLU


def normed(kind: type[torch.nn.GroupNorm], x: torch.Tensor, groups: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's answer, and PyTorch's in double precision."""
    torch.manual_seed(0)
    layer = kind(groups, x.shape[1], eps=1e-5, dtype=x.dtype).requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    with torch.no_grad():
        y = layer(x)
    truth = F.group_norm(x.double(), groups, layer.weight.double(), layer.bias.double(), 1e-5)
    return y, F.silu(truth) if kind is GroupNormSiLU else truth


@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_the_formula_is_nearer_to_the_truth_than_the_kernel(kind: type[torch.nn.GroupNorm], offset: float, monkeypatch: pytest.MonkeyPatch):
    x = (torch.randn(3, 24, 5, 7, generator=torch.Generator().manual_seed(1)) + offset).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    used = []
    by_formula = norm.by_formula
    monkeypatch.setattr(norm, "by_formula", lambda *args: used.append(1) or by_formula(*args))
    ours, truth = normed(kind, x)
    assert used
    assert ours.dtype == torch.bfloat16
    assert ours.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(norm, "FEW_PLACES", 0)
    kernel, _ = normed(kind, x)
    assert len(used) == 1
    assert (ours - truth).abs().max() <= (kernel - truth).abs().max()
    assert (ours - truth).abs().max() <= 0.5 * truth.abs().max() * 2**-7  # half a step of bfloat16 at the largest answer


def test_gradients_other_precisions_and_layouts_take_the_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(norm, "by_formula", lambda *_: pytest.fail("the formula was used"))
    x = torch.randn(2, 8, 4, 4)
    layer = GroupNormSiLU(4, 8)
    with torch.no_grad():
        layer(x.contiguous(memory_format=torch.channels_last))
        layer.bfloat16()(x.bfloat16())
    y = layer(x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_())
    y.float().sum().backward()
    assert layer.weight.grad is not None
