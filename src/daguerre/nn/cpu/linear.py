"""Matrix products x·Wᵀ on a CPU without gradients, by the faster library.

In bfloat16, and in float32 with AVX-512, oneDNN is up to a quarter faster and fuses a GELU or a multiplication into the product. In float32
without AVX-512, MKL is a tenth to a fifth faster; there a convolution with many channels and few positions is also fastest as one product.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.nn import torch_private

IM2COL_MAX_POSITIONS = 128  # B·H'·W' up to which a convolution is fastest as one product
IM2COL_MIN_PAIRS = 1 << 20  # C·N from which it is


def supports(dtype: torch.dtype) -> bool:
    """True if this module computes in this dtype; use PyTorch's own functions otherwise."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch_private.onednn_supports_bfloat16())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, (*, N), for x (*, C) and weight (N, C)."""
    if _prefers_mkl(x.dtype) and x.numel() > x.shape[-1]:  # for one row, MKL's last bit depends on the alignment of the weight
        return F.linear(x, weight, bias)
    return torch_private.onednn_linear(x, weight, bias)


def batched_linear(x: Tensor, weights: Tensor) -> Sequence[Tensor]:
    """n products x·Wᵀ, (T, N) each, for x (n, T, C) and weights (n, N, C)."""
    if _prefers_mkl(x.dtype):
        return torch.bmm(x, weights.transpose(1, 2)).unbind()
    return [linear(one, weight) for one, weight in zip(x, weights, strict=True)]


def im2col_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """conv2d as one product: each output position is a row of the inputs it depends on. Returns (B, N, H', W'), channels last.

    x: (B, C, H, W); weight: (N, C, kh, kw), not copied if it is channels last.
    """
    top, left = padding
    d = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
    windows = d.unfold(1, weight.shape[2], stride[0]).unfold(2, weight.shape[3], stride[1])  # (B, H', W', C, kh, kw)
    rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (B, H', W', kh·kw·C)
    return linear(rows, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def im2col_is_faster(x: Tensor, weight: Tensor, stride: Sequence[int]) -> bool:
    """True if `im2col_conv2d` is the fastest algorithm: with MKL and few positions, where others spend most time reordering weights."""
    positions = len(x) * x.shape[2] * x.shape[3] // (stride[0] * stride[1])
    return _prefers_mkl(x.dtype) and positions <= IM2COL_MAX_POSITIONS and weight.shape[0] * weight.shape[1] >= IM2COL_MIN_PAIRS


def geglu(x: Tensor, value: Tensor, gate: Tensor, value_bias: Tensor | None, gate_bias: Tensor | None) -> Tensor:
    """(x·Vᵀ + b) ⊙ GELU(x·Gᵀ + c), (*, N), for x (*, C), value and gate (N, C)."""
    if _prefers_mkl(x.dtype):
        gates = torch.ops.aten.gelu_(linear(x, gate, gate_bias))
        return gates.mul_(linear(x, value, value_bias))
    return torch_private.onednn_linear_mul(x, torch_private.onednn_linear(x, gate, gate_bias, gelu=True), value, value_bias)


def reorder_weight(weight: Tensor, x: Tensor) -> Tensor:
    """The weight (N, C) in the memory order that is fastest for such x (*, C); MKL reads it as it is."""
    return weight if _prefers_mkl(x.dtype) else torch_private.reorder_linear_weight(weight, x.numel() // x.shape[-1])


def prefers_onednn(dtype: torch.dtype) -> bool:
    """True if oneDNN is the faster library in this dtype."""
    return supports(dtype) and not _prefers_mkl(dtype)


def _prefers_mkl(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and _mkl_is_faster()


@cache
def _mkl_is_faster() -> bool:
    return torch.backends.mkl.is_available() and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
