"""Gated PixelCNN and PixelSNAIL: what each code sees, exactly; classes; completion."""

import pytest
import torch
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import uniform_noise
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig

GRID = (5, 6)


def pixelcnn(classes: int = 0, layers: int = 6) -> PixelCNN:
    torch.manual_seed(0)
    return PixelCNN(PixelCNNConfig(codes=5, width=8, layers=layers, first_kernel=5, classes=classes)).eval()


def pixelsnail(classes: int = 0) -> PixelSNAIL:
    torch.manual_seed(0)
    return PixelSNAIL(PixelSNAILConfig(codes=5, width=8, blocks=2, layers=1, heads=2, key_width=4, classes=classes)).eval()


def seen(prior: nn.Module, i: int, j: int) -> Tensor:
    """Which codes (h, w) the logits at row i, column j have a gradient from; in float64, so that nothing gets lost."""
    prior.double()
    inputs: list[Tensor] = []

    def keep(module: nn.Module, given: tuple, out: Tensor) -> Tensor:
        inputs.append(out.detach().requires_grad_())
        return inputs[-1]

    handle = prior.embed.register_forward_hook(keep)  # pyright: ignore[reportCallIssue]
    codes = torch.randint(5, (1, *GRID), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (prior(codes)[0, i, j] * weight).sum().backward()
    handle.remove()
    assert inputs[0].grad is not None
    return inputs[0].grad[0].abs().sum(dim=-1) > 0


def before(i: int, j: int) -> Tensor:
    return torch.arange(GRID[0] * GRID[1]).view(GRID) < i * GRID[1] + j


@pytest.mark.parametrize("make", [pixelcnn, pixelsnail])
def test_every_code_sees_all_that_came_before_and_nothing_else(make):
    """Six layers reach over the whole grid: there is no blind spot, and no future."""
    prior = make()
    for i, j in [(0, 0), (0, 1), (0, 5), (1, 0), (2, 3), (4, 0), (4, 5)]:
        assert torch.equal(seen(prior, i, j), before(i, j)), (i, j)


def test_one_layer_sees_its_kernel():
    reached = seen(pixelcnn(layers=1), 4, 3)
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[1:4, 1:6] = True  # kernel 5: from two rows above the row above, two columns to either side
    expected[4, 1:3] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("make", [pixelcnn, pixelsnail])
def test_a_class_changes_the_logits_and_is_asked_for(make):
    prior, codes = make(classes=3), torch.zeros(2, *GRID, dtype=torch.long)
    with torch.no_grad():
        logits = prior(codes, torch.tensor([0, 2]))
        torch.testing.assert_close(prior(codes, torch.tensor([[0], [2]])), logits, rtol=0, atol=0)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    with pytest.raises(DaguerreError, match="needs one of 3 classes for each of 2 pictures; nothing"):
        prior(codes)
    with pytest.raises(DaguerreError, match="run from 0 to 3; this prior knows 0 to 2"):
        prior(codes, torch.tensor([0, 3]))
    with pytest.raises(DaguerreError, match="without classes"):
        make()(codes, torch.tensor([0, 1]))


@pytest.mark.parametrize("make", [pixelcnn, pixelsnail])
def test_the_lower_half_is_completed(make):
    prior = make()
    u = uniform_noise([torch.Generator().manual_seed(seed) for seed in range(2)], (4, 3))
    rows = list(prior.sample((4, 3), u))
    assert len(rows) == 4
    assert not rows[0][:, 1:].any()
    *_, again = prior.sample((4, 3), u, prefix_rows=rows[-1][:, :2])
    assert torch.equal(again, rows[-1])


def test_impossible_shapes_are_refused():
    with pytest.raises(DaguerreError, match="kernels are 4 and 7"):
        PixelCNNConfig(kernel=4)
    with pytest.raises(DaguerreError, match="3 heads do not divide"):
        PixelSNAILConfig(heads=3)
