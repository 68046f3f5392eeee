"""Nearest-neighbour ×2 upsampling followed by a 3×3 convolution, with 9 multiplications for every 4 outputs instead of 36.

In one dimension the two outputs over an input d₁, whose neighbours are d₀ and d₂, are

    y₀ = d₀g₀ + d₁(g₁ + g₂) = (d₀ − d₁)g₀ + d₁(g₀ + g₁ + g₂)
    y₁ = d₁(g₀ + g₁) + d₂g₂ = d₁(g₀ + g₁ + g₂) + (d₂ − d₁)g₂

with three products; two dimensions take 3·3. This is minimal filtering, as in `nn.cpu.winograd`, for this pair of layers. The upsampled map
is never written.
"""

import torch
from torch import Tensor

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.threads import omp_wait_is_passive
from daguerre.nn.cpu.winograd import image_chunks, outputs_per_chunk, pad_channels_last

UPSAMPLE_ELEMENTS_PER_CHUNK = 1 << 18  # positions times channels computed at a time
UPSAMPLE_KERNELS_PER_CHUNK = 1 << 18  # channel pairs summed at a time
UPSAMPLE_MIN_PAIRS = 1 << 14  # C·C_out from which this is faster than upsampling and convolving
UPSAMPLE_MIN_PRODUCTS = 1 << 20  # B·H·W·C·C_out from which it is


def upsample_conv_is_faster(x: Tensor, weight: Tensor) -> bool:
    """True if `upsample_conv2d` is faster than upsampling, then convolving."""
    positions, pairs = len(x) * x.shape[2] * x.shape[3], weight.shape[0] * weight.shape[1]
    large = pairs >= UPSAMPLE_MIN_PAIRS and positions * pairs >= UPSAMPLE_MIN_PRODUCTS
    return large and x.dtype == torch.float32 and not torch.is_grad_enabled() and omp_wait_is_passive()


def upsample_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    elements_per_chunk: int = UPSAMPLE_ELEMENTS_PER_CHUNK,
    kernels_per_chunk: int = UPSAMPLE_KERNELS_PER_CHUNK,
) -> Tensor:
    """conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1), without gradients.

    x: (B, C, H, W); weight: (C_out, C, 3, 3). Returns (B, C_out, 2H, 2W), channels last.
    """
    B, C, H, W = x.shape
    N = len(weight)
    out = x.new_empty(B, H, 2, W, 2, N)
    for images, rows in image_chunks(B, H, W * max(C, N), elements_per_chunk):
        part = out[images, rows]
        _convolve(pad_channels_last(x[images], rows.start, part.shape[1], W), weight, part, outputs_per_chunk(C, kernels_per_chunk))
    out = out.view(B, 2 * H, 2 * W, N)
    return (out if bias is None else out.add_(bias)).permute(0, 3, 1, 2)


def _convolve(d: Tensor, weight: Tensor, out: Tensor, step: int) -> None:
    """Upsample and convolve padded d (B, H + 2, W + 2, C) into `out` (B, H, 2, W, 2, C_out), `step` output channels at a time."""
    B, H, _, W, _, N = out.shape
    C = d.shape[-1]
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
    """Write d[k−1] − d[k], d[k] and d[k+1] − d[k] for each inner k along a dimension into v[0], v[1] and v[2]."""
    before, here, after = (d.narrow(dim, k, d.shape[dim] - 2) for k in range(3))
    torch.sub(before, here, out=v[0])
    v[1].copy_(here)
    torch.sub(after, here, out=v[2])
