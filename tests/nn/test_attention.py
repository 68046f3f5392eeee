"""Attention against its formula in float64, for every algorithm and for the public function."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from daguerre.nn.attention import Attention, SpatialTransformer, attention
from daguerre.nn.cpu.attention import chunked_attention, onednn_attention
from tests.tolerance import assert_rounded


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(queries: int, keys: int, width: int, dtype: torch.dtype, batch: int = 1) -> list[Tensor]:
    """q, k and v (B, 3, L or M, d), strided as a projection leaves them."""
    return [noise(batch, length, 3, width, seed=i, dtype=dtype).transpose(1, 2) for i, length in enumerate((queries, keys, keys))]


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhld,bhmd->bhlm", q.double(), k.double()) / q.shape[-1] ** 0.5
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return torch.einsum("bhlm,bhmd->bhld", weights, v.double())


# Small, cross-attention and self-attention: each dtype meets every algorithm that its processor prefers.
@pytest.mark.parametrize(("queries", "keys"), [(11, 7), (512, 77), (512, 257), (520, 513)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_the_formula_with_and_without_gradients(queries: int, keys: int, dtype: torch.dtype):
    q, k, v = inputs(queries, keys, 20, dtype)
    truth, terms = formula(q, k, v), 20 + keys
    with torch.no_grad():
        assert_rounded(attention(q, k, v), truth, terms)

    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    exact = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    y = attention(*leaves)
    assert_rounded(y.detach(), truth, terms)
    weight = noise(*y.shape, seed=5)
    (y.double() * weight).sum().backward()
    (formula(*exact) * weight).sum().backward()
    for leaf, expected in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert expected.grad is not None
        assert_rounded(leaf.grad, expected.grad, terms + queries)


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [(chunked_attention, torch.float32), (chunked_attention, torch.bfloat16), (onednn_attention, torch.float32)],
)
@pytest.mark.parametrize("scores_per_chunk", [1, 40, 200, 1000, 1 << 20])
def test_chunks_equal_the_formula(algorithm: Callable[..., Tensor], scores_per_chunk: int, dtype: torch.dtype):
    q, k, v = inputs(11, 13, 20, dtype, batch=2)
    assert_rounded(algorithm(q, k, v, scores_per_chunk), formula(q, k, v), 20 + 13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_to_one_graph(dtype: torch.dtype):
    q, k, v = inputs(520, 513, 8, dtype)
    with torch.no_grad():
        assert_rounded(torch.compile(attention, backend="eager", fullgraph=True)(q, k, v), formula(q, k, v), 8 + 513)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads"):
        Attention(16, 3)


def test_linear_and_convolutional_projections_are_equal():
    torch.manual_seed(0)
    linear = SpatialTransformer(16, 2, 12, depth=2, linear=True, groups=4).double()
    convolution = SpatialTransformer(16, 2, 12, depth=2, linear=False, groups=4).double()
    state = {name: t[..., None, None] if name in ("proj_in.weight", "proj_out.weight") else t for name, t in linear.state_dict().items()}
    convolution.load_state_dict(state, strict=True)
    x, context = noise(2, 16, 5, 3, dtype=torch.float64), noise(2, 7, 12, seed=1, dtype=torch.float64)
    assert_rounded(linear(x, context), convolution(x, context), 64)
