"""Matrix products x·Wᵀ for networks that learn nothing, on a CPU, by the library that is quickest at them.

In bfloat16, and in float32 with AVX-512, that is oneDNN by up to a quarter, and its products end in a GELU or in a product by places,
which alone take PyTorch a fifteenth of the time. In float32 without AVX-512 it is MKL by a tenth to a fifth, and there a convolution of
many channels on a map of few places is best a product, too.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_PLACES, MANY_PAIRS = 128, 1 << 20  # places (B·H'·W') up to which, and pairs (C·N) from which, a convolution is best one product


def supports(dtype: torch.dtype) -> bool:
    """Whether products in this dtype are for this room; PyTorch has its own ways of all others."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, (*, N), for x (*, C) and weight (N, C)."""
    if _by_mkl(x.dtype) and x.numel() > x.shape[-1]:  # of a single row its answer depends, in the last bit, on where a weight lies
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def batched_linear(x: Tensor, weights: Tensor) -> Sequence[Tensor]:
    """n times x·Wᵀ, (T, N) each, for x (n, T, C) and weights (n, N, C)."""
    if _by_mkl(x.dtype):
        return torch.bmm(x, weights.transpose(1, 2)).unbind()
    return [linear(one, weight) for one, weight in zip(x, weights, strict=True)]


def im2col_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """conv2d as one product (im2col): each place is a row of the numbers that its answer depends on. Returns (B, N, H', W'), channels last.

    x: (B, C, H, W); weight: (N, C, kh, kw), which is read as it is where it is channels last.
    """
    top, left = padding
    d = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
    windows = d.unfold(1, weight.shape[2], stride[0]).unfold(2, weight.shape[3], stride[1])  # (B, H', W', C, kh, kw)
    rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (B, H', W', kh·kw·C)
    return linear(rows, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def im2col_is_faster(x: Tensor, weight: Tensor, stride: Sequence[int]) -> bool:
    """Whether `convolution` is the quickest way: by MKL, on maps of few places, where other ways take longest to lay out their kernels."""
    places = len(x) * x.shape[2] * x.shape[3] // (stride[0] * stride[1])
    return _by_mkl(x.dtype) and places <= FEW_PLACES and weight.shape[0] * weight.shape[1] >= MANY_PAIRS


def geglu(x: Tensor, value: Tensor, gate: Tensor, value_bias: Tensor | None, gate_bias: Tensor | None) -> Tensor:
    """(x·Vᵀ + b) ⊙ GELU(x·Gᵀ + c), (*, N), for x (*, C), value and gate (N, C)."""
    if _by_mkl(x.dtype):
        gates = torch.ops.aten.gelu_(linear(x, gate, gate_bias))
        return gates.mul_(linear(x, value, value_bias))
    gates = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
    return torch.ops.mkldnn._linear_pointwise.binary(x, gates, value, value_bias, "mul")


def reorder_weight(weight: Tensor, x: Tensor) -> Tensor:
    """The weight (N, C) in the order in which it is read for such x (*, C); MKL reads it as it is."""
    if _by_mkl(x.dtype):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), x.numel() // x.shape[-1])


def prefers_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN is the quickest at products in this dtype."""
    return supports(dtype) and not _by_mkl(dtype)


def _by_mkl(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and _mkl_is_quicker()


@cache
def _mkl_is_quicker() -> bool:
    return torch.backends.mkl.is_available() and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
