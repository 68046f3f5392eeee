"""The private or recent torch functions that this library uses. Each has an equivalent for torch releases that lack it.

oneDNN can fuse a matrix product with what follows it and can reorder weights once instead of at every call, but torch offers both only
through private operators. A release that drops one of them costs speed, not correctness.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _has(*names: str) -> bool:
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


def cpu_has(feature: str) -> bool:
    """True if the processor has an instruction set such as "amx_tile" or "avx512_bf16"; False if torch cannot query it (before 2.11)."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get(feature, False))


def onednn_supports_bfloat16() -> bool:
    return _has("_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """x·Wᵀ + b, and GELU of it if `gelu`; (*, N) for x (*, C) and weight (N, C), plain or from `reorder_linear_weight`."""
    if _has("_linear_pointwise"):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def onednn_linear_mul(x: Tensor, factor: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(x·Wᵀ + b) ⊙ factor; the arguments are those of `onednn_linear`."""
    if _has("_linear_pointwise"):
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, weight, bias, "mul")
    return F.linear(x, weight, bias) * factor


def reorder_linear_weight(weight: Tensor, rows: int) -> Tensor:
    """The weight (N, C) in the memory order that oneDNN reads for an x of so many rows."""
    if _has("_linear_pointwise", "_reorder_linear_weight"):
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return weight


def onednn_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """F.conv2d for a plain weight or one from `reorder_conv2d_weight`."""
    if _has("_convolution_pointwise"):
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, padding, stride, dilation, groups, "none", [], "")
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def reorder_conv2d_weight(
    weight: Tensor, input_shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """The weight (N, C/groups, kh, kw) in the memory order that oneDNN reads for an x of this shape."""
    if _has("_convolution_pointwise", "_reorder_convolution_weight"):
        return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, input_shape)
    return weight


def lerp_each_(tensors: list[Tensor], targets: list[Tensor], weight: float) -> None:
    """Move every tensor towards its target in place, t ← t + weight·(target − t), in one call on a GPU."""
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(tensors, targets, weight)  # pyright: ignore[reportPrivateImportUsage]
        return
    for tensor, target in zip(tensors, targets, strict=True):
        tensor.lerp_(target, weight)
