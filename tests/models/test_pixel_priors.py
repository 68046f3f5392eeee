"""Gated PixelCNN and PixelSNAIL: exact receptive fields, class labels, completion."""

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


def receptive_field(prior: nn.Module, i: int, j: int) -> Tensor:
    """Which codes (h, w) have a gradient for the logits at row i, column j; in float64 against underflow."""
    prior.double()
    inputs: list[Tensor] = []

    def record(module: nn.Module, given: tuple, out: Tensor) -> Tensor:
        inputs.append(out.detach().requires_grad_())
        return inputs[-1]

    handle = prior.embed.register_forward_hook(record)  # pyright: ignore[reportCallIssue]
    codes = torch.randint(5, (1, *GRID), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (prior(codes)[0, i, j] * weight).sum().backward()
    handle.remove()
    assert inputs[0].grad is not None
    return inputs[0].grad[0].abs().sum(dim=-1) > 0


def earlier_codes(i: int, j: int) -> Tensor:
    return torch.arange(GRID[0] * GRID[1]).view(GRID) < i * GRID[1] + j


@pytest.mark.parametrize("build", [pixelcnn, pixelsnail])
def test_logits_depend_on_all_earlier_codes_and_nothing_else(build):
    """Six layers cover the whole grid: there is no blind spot and no dependence on later codes."""
    prior = build()
    for i, j in [(0, 0), (0, 1), (0, 5), (1, 0), (2, 3), (4, 0), (4, 5)]:
        assert torch.equal(receptive_field(prior, i, j), earlier_codes(i, j)), (i, j)


def test_one_layer_has_the_receptive_field_of_its_kernel():
    reached = receptive_field(pixelcnn(layers=1), 4, 3)
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[1:4, 1:6] = True  # kernel 5: from two rows above the row above, two columns to either side
    expected[4, 1:3] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("build", [pixelcnn, pixelsnail])
def test_class_label_changes_the_logits_and_is_required(build):
    prior, codes = build(classes=3), torch.zeros(2, *GRID, dtype=torch.long)
    with torch.no_grad():
        logits = prior(codes, torch.tensor([0, 2]))
        torch.testing.assert_close(prior(codes, torch.tensor([[0], [2]])), logits, rtol=0, atol=0)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    with pytest.raises(DaguerreError, match="needs one class label below 3 for each of 2 images; nothing"):
        prior(codes)
    with pytest.raises(DaguerreError, match="range from 0 to 3; this prior has 0 to 2"):
        prior(codes, torch.tensor([0, 3]))
    with pytest.raises(DaguerreError, match="unconditional"):
        build()(codes, torch.tensor([0, 1]))


@pytest.mark.parametrize("build", [pixelcnn, pixelsnail])
def test_completion_with_given_rows_equals_the_full_sample(build):
    prior = build()
    u = uniform_noise([torch.Generator().manual_seed(seed) for seed in range(2)], (4, 3))
    rows = list(prior.sample((4, 3), u))
    assert len(rows) == 4
    assert not rows[0][:, 1:].any()
    *_, completed = prior.sample((4, 3), u, prefix_rows=rows[-1][:, :2])
    assert torch.equal(completed, rows[-1])


def test_rejects_invalid_configs():
    with pytest.raises(DaguerreError, match="kernel sizes are 4 and 7"):
        PixelCNNConfig(kernel=4)
    with pytest.raises(DaguerreError, match="3 heads do not divide"):
        PixelSNAILConfig(heads=3)
