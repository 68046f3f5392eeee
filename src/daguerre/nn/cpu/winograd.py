"""3×3 convolutions of stride 1 by Winograd's minimal filtering F(4×4, 3×3), Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A.

A tile Y of 4×4 outputs takes 36 multiplications instead of 144; d holds the 6×6 inputs it depends on, g is the kernel. The sum over the
input channels is inside the brackets: one matrix product, tiles × channels × output channels, for each of the 36 positions. Lavin and Gray
2015, arXiv:1509.09308. The matrices use the points 0, ±P, ±Q and ∞ with P·Q = 1. The factors 1/n(x), n(x) = 2x²(x² − 1/x²), are moved from
G to A:

         ⎡ 1   0   −P²−Q²   0      1  0 ⎤        ⎡ 1   0   0 ⎤         ⎡ 1    1/n(P)     1/n(P)     1/n(Q)     1/n(Q)   0 ⎤
    Bᵀ = ⎢ 0  ∓Q    −Q²    ±P      1  0 ⎥    G = ⎢ 1  ±P   P²⎥    Aᵀ = ⎢ 0    P/n(P)    −P/n(P)     Q/n(Q)    −Q/n(Q)   0 ⎥
         ⎢ 0  ∓P    −P²    ±Q      1  0 ⎥        ⎢ 1  ±Q   Q²⎥         ⎢ 0    P²/n(P)    P²/n(P)    Q²/n(Q)    Q²/n(Q)  0 ⎥
         ⎣ 0   1     0   −P²−Q²    0  1 ⎦        ⎣ 0   0   1 ⎦         ⎣ 0    P³/n(P)   −P³/n(P)    Q³/n(Q)   −Q³/n(Q)  1 ⎦
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.threads import omp_wait_is_passive

P, Q = 2**-0.5, 2**0.5  # half the rounding error of Lavin and Gray's 1 and 2
SP, SQ = 0.5 / (P**4 - 1), 0.5 / (Q**4 - 1)  # 1/n(P), 1/n(Q)
ELEMENTS_PER_CHUNK = 1 << 17  # tiles times channels transformed at a time
KERNELS_PER_CHUNK = 1 << 18  # channel pairs transformed at a time, so that they are still in the cache when they are multiplied
OUTPUT_BLOCK = 16  # output channels: products of multiples of this are up to a tenth faster


def winograd_is_faster(x: Tensor, weight: Tensor) -> bool:
    """True if `winograd_conv2d` is faster than oneDNN's direct convolution: on large maps, or where reading the kernels takes longest.

    It runs about 300 small steps, and all threads wait for each other after each of them (see `omp_wait_is_passive`).
    """
    tiles, pairs = len(x) * -(-x.shape[2] // 4) * -(-x.shape[3] // 4), weight.shape[0] * weight.shape[1]
    large = (tiles >= 64 and tiles * pairs >= 1 << 22) or (tiles >= 8 and pairs >= 1 << 20)
    return large and x.dtype == weight.dtype == torch.float32 and not torch.is_grad_enabled() and omp_wait_is_passive()


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    elements_per_chunk: int = ELEMENTS_PER_CHUNK,
    kernels_per_chunk: int = KERNELS_PER_CHUNK,
) -> Tensor:
    """conv2d(x, weight, bias, padding=1), without gradients: (B, C_out, H, W), channels last, of x (B, C, H, W)."""
    B, C, H, W = x.shape
    N, h, w = len(weight), -(-H // 4), -(-W // 4)
    out = x.new_empty(B, 4 * h, 4 * w, N)
    for images, rows in image_chunks(B, h, w * max(C, N), elements_per_chunk):
        part = out[images, 4 * rows.start : 4 * rows.stop]
        d = pad_channels_last(x[images], 4 * rows.start, part.shape[1], 4 * w)
        _convolve(d, weight, bias, part, outputs_per_chunk(C, kernels_per_chunk))
    return out[:, :H, :W].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def image_chunks(images: int, rows: int, row_elements: int, max_elements: int) -> Iterator[tuple[slice, slice]]:
    """Split a batch into (images, rows) of at most `max_elements`: several whole images, or some rows of one."""
    height = max(1, max_elements // row_elements)
    row_step, image_step = -(-rows // -(-rows // height)), max(1, height // rows)
    for first in range(0, images, image_step):
        for top in range(0, rows, row_step):
            yield slice(first, min(first + image_step, images)), slice(top, min(top + row_step, rows))


def outputs_per_chunk(channels: int, max_pairs: int) -> int:
    """The largest multiple of OUTPUT_BLOCK output channels with at most `max_pairs` channel pairs, at least OUTPUT_BLOCK."""
    return max(1, max_pairs // channels // OUTPUT_BLOCK) * OUTPUT_BLOCK


def pad_channels_last(x: Tensor, top: int, height: int, width: int) -> Tensor:
    """The inputs of `height` rows of a 3×3 convolution's outputs from row `top`: (B, height + 2, width + 2, C) of x (B, C, H, W)."""
    B, C, H, W = x.shape
    d, above, end = x.new_zeros(B, height + 2, width + 2, C), max(top - 1, 0), min(top + height + 1, H)
    d[:, above + 1 - top : end + 1 - top, 1 : W + 1] = x[:, :, above:end].permute(0, 2, 3, 1)
    return d


def _convolve(d: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, step: int) -> None:
    """Convolve padded d (B, 4h + 2, 4w + 2, C) into `out` (B, 4h, 4w, C_out), `step` output channels at a time."""
    B, H, W, N = out.shape
    C, h, w = d.shape[-1], H // 4, W // 4
    lines, v = d.new_empty(6, B, h, W + 2, C), d.new_empty(6, B, h, w, C)
    u, half = d.new_empty(7, min(step, N), C), d.new_empty(6, 4, B * h * w, N)
    _to_v([d[:, k : k + H - 3 : 4] for k in range(6)], lines)  # Bᵀd
    for i in range(6):
        _to_v([lines[i, :, :, k : k + W - 3 : 4] for k in range(6)], v)  # line i of Bᵀd B
        for first in range(0, N, step):
            part = slice(first, first + step)
            g = weight[part]
            _to_u(g, i, u[:, : len(g)])
            m = cpu_linear.batched_linear(v.view(6, -1, C), u[:6, : len(g)])  # (B·h·w, C_out) each
            _to_y(m, half[i, :, :, part].unbind())  # line i of [(G g Gᵀ) ⊙ (Bᵀ d B)] A
    for j in range(4):
        _to_y([line[j].view(B, h, w, N) for line in half], [out[:, k::4, j::4] for k in range(4)])
    if bias is not None:
        out.add_(bias)


def _to_v(d: Sequence[Tensor], v: Tensor) -> None:
    """v = Bᵀd"""
    zero, p, minus_p, q, minus_q, infinity = v
    for even, odd, x in ((p, minus_p, Q), (q, minus_q, P)):
        torch.sub(d[4], d[2], alpha=x**2, out=even)
        torch.sub(d[3], d[1], alpha=x**2, out=odd)
    torch.sub(d[0], d[2], alpha=Q**2, out=zero).add_(q)
    torch.sub(d[5], d[3], alpha=Q**2, out=infinity).sub_(minus_p, alpha=P**2)
    for even, odd, x in ((p, minus_p, P), (q, minus_q, Q)):
        even.add_(odd, alpha=x)
        torch.sub(even, odd, alpha=2 * x, out=odd)


def _to_u(weight: Tensor, i: int, u: Tensor) -> None:
    """Write line i of G g Gᵀ, (6, C_out, C), to the first six of u; the seventh is overwritten. weight: (C_out, C, 3, 3)"""
    g, x = weight.permute(2, 3, 0, 1), (0, P, -P, Q, -Q, 0)[i]
    zero, p, minus_p, q, minus_q, infinity, one = u
    for k, line in enumerate((zero, one, infinity)):  # line i of G g
        if x:
            torch.add(g[0, k], g[2, k], alpha=x**2, out=line).add_(g[1, k], alpha=x)
        else:
            line.copy_(g[0 if i == 0 else 2, k])
    for plus, minus, x in ((p, minus_p, P), (q, minus_q, Q)):
        torch.add(zero, infinity, alpha=x**2, out=plus)
        torch.sub(plus, one, alpha=x, out=minus)
        plus.add_(one, alpha=x)


def _to_y(m: Sequence[Tensor], y: Sequence[Tensor]) -> None:
    """y = Aᵀm; m is overwritten."""
    zero, even_p, odd_p, even_q, odd_q, infinity = m
    for even, odd in ((even_p, odd_p), (even_q, odd_q)):
        even.add_(odd)
        torch.sub(even, odd, alpha=2, out=odd)
    torch.add(zero.add_(even_p, alpha=SP), even_q, alpha=SQ, out=y[0])
    torch.add(odd_p, odd_q, alpha=SQ / SP * Q / P, out=y[1]).mul_(SP * P)
    torch.add(even_p, even_q, alpha=SQ / SP * Q**2 / P**2, out=y[2]).mul_(SP * P**2)
    torch.add(infinity.add_(odd_p, alpha=SP * P**3), odd_q, alpha=SQ * Q**3, out=y[3])
