"""Attention against its formula written out in float64, and the two ways of computing it against each other."""

import pytest
import torch
from torch import Tensor

from daguerre.nn import attention as attention_module
from daguerre.nn.attention import MIN_TOKENS_ONEDNN, SHORT_CONTEXT, Attention, SpatialTransformer, attention
from daguerre.nn.cpu import linear as cpu_linear


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhld,bhmd->bhlm", q.double(), k.double()) / q.shape[-1] ** 0.5
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return torch.einsum("bhlm,bhmd->bhld", weights, v.double())


@pytest.mark.parametrize("few", [0, attention_module.SDPA_MAX_SCORES])
@pytest.mark.parametrize("keys", [7, SHORT_CONTEXT + 1])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_attend_is_the_formula_with_and_without_gradients(
    few: int, keys: int, dtype: torch.dtype, atol: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention_module, "SDPA_MAX_SCORES", few)
    q, k, v = (noise(2, 3, length, 20, seed=i, dtype=dtype) for i, length in enumerate((11, keys, keys)))
    truth = by_formula(q, k, v)
    torch.testing.assert_close(attention(q, k, v).double(), truth, rtol=0, atol=atol)

    trained = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    exact = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    out = attention(*trained)
    torch.testing.assert_close(out.detach().double(), truth, rtol=0, atol=atol)
    weight = noise(*out.shape, seed=5)
    (out.float() * weight).sum().backward()
    (by_formula(*exact) * weight).sum().backward()
    for ours, theirs in zip(trained, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=4 * atol)


@pytest.mark.parametrize("budget", [1, 40, 200, 1000, 1 << 20])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_attending_in_parts_is_the_formula_however_it_is_cut(budget: int, dtype: torch.dtype, atol: float, monkeypatch: pytest.MonkeyPatch):
    q, k, v = (noise(2, length, 3, 20, seed=i, dtype=dtype).transpose(1, 2) for i, length in enumerate((11, 13, 13)))
    monkeypatch.setattr(attention_module, "SDPA_MAX_SCORES", 0)
    monkeypatch.setattr(attention_module, "MIN_TOKENS_ONEDNN", 0)
    monkeypatch.setattr(attention_module, "omp_wait_is_passive", lambda: True)
    monkeypatch.setattr(cpu_linear, "_mkl_is_quicker", lambda: False)
    monkeypatch.setattr(attention_module, "HAS_AMX", False)
    monkeypatch.setattr(attention_module, "WEIGHTS_AT_ONCE", budget)
    torch.testing.assert_close(attention(q, k, v).double(), by_formula(q, k, v), rtol=0, atol=atol)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(
    ("dtype", "keys", "taken"), [(torch.float32, MIN_TOKENS_ONEDNN, 1), (torch.float32, 77, 0), (torch.float64, MIN_TOKENS_ONEDNN, 0)]
)
def test_only_many_queries_and_keys_in_float32_go_by_onednn(dtype: torch.dtype, keys: int, taken: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention_module, "omp_wait_is_passive", lambda: True)
    monkeypatch.setattr(cpu_linear, "_mkl_is_quicker", lambda: False)
    calls, by_onednn = [], attention_module._attend_by_onednn
    monkeypatch.setattr(attention_module, "_attend_by_onednn", lambda *given: calls.append(given) or by_onednn(*given))
    q, k, v = (noise(1, 2, length, 8, seed=i, dtype=dtype) for i, length in enumerate((MIN_TOKENS_ONEDNN, keys, keys)))
    torch.testing.assert_close(attention(q, k, v).double(), by_formula(q, k, v), rtol=0, atol=1e-6)
    attention(q.requires_grad_(), k, v)
    assert len(calls) == taken


@pytest.mark.parametrize("keys", [77, MIN_TOKENS_ONEDNN])
@pytest.mark.parametrize(("tiles", "learns", "in_parts"), [(False, False, 1), (True, False, 0), (False, True, 0), (True, True, 0)])
def test_bfloat16_goes_in_parts_where_the_fused_kernel_has_no_tiles(
    keys: int, tiles: bool, learns: bool, in_parts: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention_module, "HAS_AMX", tiles)
    calls, parts = [], attention_module._attend_in_parts
    monkeypatch.setattr(attention_module, "_attend_in_parts", lambda *given: calls.append(given) or parts(*given))
    q, k, v = (noise(1, 2, length, 8, seed=i, dtype=torch.bfloat16) for i, length in enumerate((MIN_TOKENS_ONEDNN, keys, keys)))
    torch.testing.assert_close(attention(q.requires_grad_(learns), k, v).double(), by_formula(q, k, v), rtol=0, atol=0.02)
    assert len(calls) == in_parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_which_way_it_goes_breaks_no_compiled_graph(dtype: torch.dtype):
    q, k, v = (noise(1, 2, MIN_TOKENS_ONEDNN, 8, seed=i, dtype=dtype) for i in range(3))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(attention, backend="eager", fullgraph=True)(q, k, v), attention(q, k, v))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads"):
        Attention(16, 3)


def test_linear_and_convolutional_projections_are_the_same_arithmetic():
    torch.manual_seed(0)
    linear = SpatialTransformer(16, 2, 12, depth=2, linear=True, groups=4)
    convolution = SpatialTransformer(16, 2, 12, depth=2, linear=False, groups=4)
    state = {name: t[..., None, None] if name in ("proj_in.weight", "proj_out.weight") else t for name, t in linear.state_dict().items()}
    convolution.load_state_dict(state, strict=True)
    x, context = noise(2, 16, 5, 3), noise(2, 7, 12, seed=1)
    torch.testing.assert_close(linear(x, context), convolution(x, context), rtol=0, atol=1e-6)
