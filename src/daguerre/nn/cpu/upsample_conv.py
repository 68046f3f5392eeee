"""Doubling by nearest neighbours and then a 3×3 convolution, by nine products for every four outputs instead of 36.

In one dimension the two outputs over an input d₁, whose neighbours are d₀ and d₂, are

    y₀ = d₀g₀ + d₁(g₁ + g₂) = (d₀ − d₁)g₀ + d₁(g₀ + g₁ + g₂)
    y₁ = d₁(g₀ + g₁) + d₂g₂ = d₁(g₀ + g₁ + g₂) + (d₂ − d₁)g₂

with three products, in two dimensions with 3·3: minimal filtering, as `nn.winograd`, for this pair of layers, and without its rounding
errors. The enlarged map is never written.
"""

import torch
from torch import Tensor

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.filtering import outputs_at_once, padded, tiles
from daguerre.nn.cpu.threads import omp_wait_is_passive

UPSAMPLE_STATES = 1 << 18  # places times channels that are worked on at a time
UPSAMPLE_KERNELS = 1 << 18  # that are added up at a time
WORTH, PAIRS = 1 << 20, 1 << 16  # places times pairs of channels, and pairs, from which what is around the products is paid for


def upsample_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` is quicker than a transposed convolution or one over the enlarged map."""
    places, pairs = len(x) * x.shape[2] * x.shape[3], weight.shape[0] * weight.shape[1]
    worth = pairs >= PAIRS and places * pairs >= WORTH
    return worth and x.dtype == torch.float32 and not torch.is_grad_enabled() and omp_wait_is_passive()


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1), without gradients.

    x: (B, C, H, W); weight: (C_out, C, 3, 3). Returns (B, C_out, 2H, 2W), channels last.
    """
    B, C, H, W = x.shape
    N = len(weight)
    out = x.new_empty(B, H, 2, W, 2, N)
    for pictures, rows in tiles(B, H, W * max(C, N), UPSAMPLE_STATES):
        place = out[pictures, rows]
        _convolve(padded(x[pictures], rows.start, place.shape[1], W), weight, place)
    out = out.view(B, 2 * H, 2 * W, N)
    return (out if bias is None else out.add_(bias)).permute(0, 3, 1, 2)


def _convolve(d: Tensor, weight: Tensor, out: Tensor) -> None:
    """Doubling and convolving padded d (B, H + 2, W + 2, C), written to `out` (B, H, 2, W, 2, C_out)."""
    B, H, _, W, _, N = out.shape
    C, step = d.shape[-1], outputs_at_once(d.shape[-1], UPSAMPLE_KERNELS)
    lines, v = d.new_empty(3, B, H, W + 2, C), d.new_empty(3, 3, B, H, W, C)
    _differences(d, 1, lines)
    _differences(lines, 3, v.transpose(0, 1))
    for first in range(0, N, step):
        part = slice(first, first + step)
        u = weight[part].permute(2, 3, 0, 1).clone(memory_format=torch.contiguous_format)  # (3, 3, C_out, C)
        u[1].add_(u[0]).add_(u[2])
        u[:, 1].add_(u[:, 0]).add_(u[:, 2])
        m = [y.view(B, H, W, -1) for y in cpu_linear.batched_linear(v.view(9, -1, C), u.view(9, -1, C))]
        for i, line in enumerate((m[:3], m[6:])):
            for y, middle in zip(line, m[3:6], strict=True):
                y.add_(middle)
            for j in range(2):
                torch.add(line[1], line[2 * j], out=out[:, :, i, :, j, part])


def _differences(d: Tensor, dim: int, v: Tensor) -> None:
    """What `d` is along a dimension: between what is before and after each of its inner places less that, into v[0], v[1] and v[2]."""
    before, here, after = (d.narrow(dim, k, d.shape[dim] - 2) for k in range(3))
    torch.sub(before, here, out=v[0])
    v[1].copy_(here)
    torch.sub(after, here, out=v[2])
