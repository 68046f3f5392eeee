"""Products are products, whichever library computes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn import products


@pytest.fixture(params=[True, False], ids=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not products.computes(torch.float32):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(products, "_mkl_is_quicker", lambda: request.param)
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
    torch.testing.assert_close(products.linear(x, value, b), F.linear(x, value, b), **close)
    torch.testing.assert_close(products.linear(x, products.laid_out(value, x), b), F.linear(x, value, b), **close)
    torch.testing.assert_close(products.geglu(x, value, gate, b, c), F.linear(x, value, b) * F.gelu(F.linear(x, gate, c)), **close)


@pytest.mark.parametrize("rows", [1, 2, 16])
@torch.no_grad()
def test_answers_do_not_depend_on_where_a_weight_lies(library: bool, rows: int):
    """As it does elsewhere in a single file than in a folder, and the pictures of both are the same."""
    x, value, gate, b = noise(rows, 128), noise(16, 128), noise(17, 128)[1:], noise(16)
    wanted = products.linear(x, value, b), products.geglu(x, value, gate, b, b)
    for offset in (1, 2, 4, 8):
        moved = [torch.empty(16 * 128 + offset)[offset:].view(16, 128).copy_(weight) for weight in (value, gate)]
        assert torch.equal(products.linear(x, moved[0], b), wanted[0])
        assert torch.equal(products.geglu(x, *moved, b, b), wanted[1])


@torch.no_grad()
def test_several_at_a_time(library: bool):
    x, weights = noise(6, 4, 9), noise(7, 5, 9)[:6]
    for y, one, weight in zip(products.several(x, weights), x, weights, strict=True):
        torch.testing.assert_close(y, one @ weight.t(), atol=1e-5, rtol=1e-5)


def test_where_onednn_is_the_quickest(library: bool):
    assert products.by_onednn(torch.float32) is not library
    assert products.by_onednn(torch.bfloat16) == products.computes(torch.bfloat16)
    assert not products.computes(torch.float64)
