"""Every private operator of torch gives the numbers of its public equivalent, and its absence changes nothing but speed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn import torch_private
from daguerre.nn.cpu.prepack import prepack
from tests.tolerance import assert_rounded

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(params=[True, False], ids=["with private operators", "without"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(torch_private, "_has", lambda *_names: False)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 9), (4, 9), (2, 3, 9)])
@torch.no_grad()
def test_linear_layers(shape: tuple[int, ...], biased: bool):
    x, weight, bias, factor = noise(*shape), noise(5, 9), noise(5) if biased else None, noise(*shape[:-1], 5)
    truth = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_rounded(torch_private.onednn_linear(x, weight, bias), truth, 9)
    assert_rounded(torch_private.onednn_linear(x, torch_private.reorder_linear_weight(weight, x.numel() // 9), bias), truth, 9)
    assert_rounded(torch_private.onednn_linear(x, weight, bias, gelu=True), F.gelu(truth), 9)
    assert_rounded(torch_private.onednn_linear_mul(x, factor, weight, bias), factor * truth, 9)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("options", [((1, 1), (1, 1), (1, 1), 1), ((2, 1), (0, 2), (1, 2), 2)])
@torch.no_grad()
def test_convolutions(options: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]):
    x, weight, bias = noise(2, 4, 7, 8), noise(6, 4 // options[3], 3, 3), noise(6)
    truth = F.conv2d(x.double(), weight.double(), bias.double(), *options)
    assert_rounded(torch_private.onednn_conv2d(x, weight, bias, *options), truth, 36)
    assert_rounded(
        torch_private.onednn_conv2d(x, torch_private.reorder_conv2d_weight(weight, x.shape, *options), bias, *options), truth, 36
    )


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("copies", [True, False])
@torch.no_grad()
def test_a_prepacked_network_works_with_and_without_them(copies: bool):
    torch.manual_seed(0)
    network, x = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, padding=1), torch.nn.SiLU(), torch.nn.Linear(8, 5)), noise(2, 4, 7, 8)
    packed = prepack(network, copies=copies)
    truth = torch.nn.Sequential(network).double()(x.double())
    network.float()
    assert_rounded(packed(x), truth, 36 + 8)


def test_bfloat16_is_unsupported_without_the_query(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_private, "_has", lambda *_names: False)
    assert not torch_private.onednn_supports_bfloat16()


@pytest.mark.parametrize("missing", [False, True])
def test_lerp_each(missing: bool, monkeypatch: pytest.MonkeyPatch):
    if missing:
        monkeypatch.delattr(torch, "_foreach_lerp_", raising=False)
    tensors, targets = [noise(3), noise(2, 4)], [noise(4)[:3], noise(3, 4)[:2]]
    expected = [tensor.double() + 0.3 * (target.double() - tensor.double()) for tensor, target in zip(tensors, targets, strict=True)]
    torch_private.lerp_each_(tensors, targets, 0.3)
    for tensor, truth in zip(tensors, expected, strict=True):
        assert_rounded(tensor, truth)
