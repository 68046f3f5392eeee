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


@torch.no_grad()
def test_several_at_a_time(library: bool):
    x, weights = noise(6, 4, 9), noise(7, 5, 9)[:6]
    for y, one, weight in zip(products.several(x, weights), x, weights, strict=True):
        torch.testing.assert_close(y, one @ weight.t(), atol=1e-5, rtol=1e-5)


def test_where_onednn_is_the_quickest(library: bool):
    assert products.by_onednn(torch.float32) is not library
    assert products.by_onednn(torch.bfloat16) == products.computes(torch.bfloat16)
    assert not products.computes(torch.float64)
