"""Attention, softmax(QKᵀ / √d)·V  (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), and the blocks that put it on feature maps.

AttentionBlock: Ho et al. 2020, arXiv:2006.11239, appendix B.  SpatialTransformer: Rombach et al. 2022, arXiv:2112.10752, §3.3, app. E.2.1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu.threads import omp_wait_is_passive
from daguerre.nn.norm import GroupNorm
from daguerre.nn.voices import repeat_to_batch

TRANSFORMER_NORM_EPS = 1e-6  # of the group norm before a spatial transformer, whatever the residual blocks use

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v -> answers, as `attend`
SHORT_CONTEXT = 256  # keys, up to which two plain products beat PyTorch's fused attention in bfloat16 training on a CPU
SDPA_MAX_SCORES = 1 << 15  # attention weights in all, up to which one call of the fused kernel beats the formula's many
MIN_TOKENS_ONEDNN = 512  # queries and keys, from which oneDNN's products pay in float32
HAS_AMX = torch.cpu._is_amx_tile_supported()  # of AMX; asked once, here, where no graph is compiled that the question would break
WEIGHTS_AT_ONCE = 1 << 20  # attention weights made at a time, so that they stay in a CPU's cache


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ / √d)·V for q (B, heads, L, d), k and v (B, heads, M, d); returns (B, heads, L, d).

    PyTorch's fused kernel does it, except on a CPU: in bfloat16 without AMX it is two to four times slower there than the formula itself
    unless all is small, and in float32 with AVX-512 half as slow again, for many queries and keys, as the formula by oneDNN's products.
    """
    if q.device.type != "cpu" or q.shape[:-1].numel() * k.shape[-2] <= SDPA_MAX_SCORES:
        return F.scaled_dot_product_attention(q, k, v)
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.dtype == torch.bfloat16 and not learns and not HAS_AMX:
        return _attend_in_parts(q, k, v)
    many = (
        min(q.shape[-2], k.shape[-2]) >= MIN_TOKENS_ONEDNN and not torch.compiler.is_compiling()
    )  # which cannot look into the questions below
    if q.dtype == torch.float32 and not learns and many and cpu_linear.prefers_onednn(q.dtype) and omp_wait_is_passive():
        return _attend_by_onednn(q, k, v)
    if q.dtype == torch.bfloat16 and learns and k.shape[-2] <= SHORT_CONTEXT:
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)  # (B, heads, L, M)
        return weights.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula for some rows of one head, or for some whole heads, at a time."""
    (_, _, L, d), M = q.shape, k.shape[-2]
    rows = max(1, min(L, WEIGHTS_AT_ONCE // M))
    heads = max(1, WEIGHTS_AT_ONCE // (L * M))
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    parts = y.flatten(0, 1), (q * d**-0.5).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # each (B·heads, L or M, d)
    for y_part, q_part, k_part, v_part in zip(*(part.split(heads) for part in parts), strict=True):
        for y_rows, q_rows in zip(y_part.split(rows, dim=1), q_part.split(rows, dim=1), strict=True):
            torch.bmm((q_rows @ k_part.transpose(1, 2)).softmax(dim=-1), v_part, out=y_rows)
    return y


def _attend_by_onednn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula for some rows of one head at a time; both products are linear layers, whose weights are the keys and the values."""
    rows = max(1, WEIGHTS_AT_ONCE // k.shape[-2])
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    scaled = torch.mul(q, q.shape[-1] ** -0.5).contiguous()
    heads = (part.flatten(0, 1) for part in (y, scaled, k, v))  # each (B·heads, L or M, d)
    for y_head, q_head, k_head, v_head in zip(*heads, strict=True):
        keys, values = k_head.contiguous(), v_head.t().contiguous()
        for y_rows, q_rows in zip(y_head.split(rows), q_head.split(rows), strict=True):
            weights = cpu_linear.linear(q_rows, keys).softmax(dim=-1)  # (R, M)
            y_rows.copy_(cpu_linear.linear(weights, values))
    return y


class Attention(nn.Module):
    """Multi-head attention of x over a context, or over x itself where there is none.

    width: channels of x, split evenly over the heads. bias: of the three input projections.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width or width, width, bias=bias)
        self.to_v = nn.Linear(context_width or width, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    attend: AttentionFn = staticmethod(attention)  # an instance may be given another for a while (see `nn.watching`)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, L, C); context: (B, M, D). Returns (B, L, C)."""
        context = x if context is None else context
        q, k, v = (  # (B, heads, L or M, C/heads)
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        y = self.attend(q, k, v)  # (B, heads, L, C/heads)
        return self.to_out(y.transpose(1, 2).flatten(2))  # (B, L, C)


class GEGLU(nn.Module):
    """a·GELU(b) with (a, b) from one projection (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)  # each (B, L, W)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = 4 * width
        self.net = nn.Sequential(GEGLU(width, self.inner), nn.Dropout(dropout), nn.Linear(self.inner, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """x + self-attention, + cross-attention, + feed-forward, each behind its layer norm.

    cross_only: the first attention, too, looks at the context (as in the ×4 upscaler's upper levels).
    """

    def __init__(self, width: int, heads: int, context_width: int, *, dropout: float = 0.0, cross_only: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, context_width if cross_only else None)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, dropout)
        self.cross_only = cross_only

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = repeat_to_batch(x, len(context)) if self.cross_only else x
        x = x + self.attn1(self.norm1(x), context if self.cross_only else None)
        x = repeat_to_batch(x, len(context))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of a feature map, between two projections, around a shortcut.

    linear: the projections are linear layers (SD 2, SDXL) rather than 1×1 convolutions (SD 1); the arithmetic is the same.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        context_width: int,
        depth: int = 1,
        *,
        linear: bool = False,
        groups: int = 32,
        dropout: float = 0.0,
        cross_only: bool = False,
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        blocks = (TransformerBlock(width, heads, context_width, dropout=dropout, cross_only=cross_only) for _ in range(depth))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.linear = linear

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W); context: (B, L, D). Returns (B, C, H, W).

        Of x there may be one voice's share, 1/n of the context's batch (see `nn.voices`); the answer is the whole batch.
        """
        h = self.norm(x)
        if self.linear:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # (B, HW, C)
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)  # (B, HW, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        x = repeat_to_batch(x, len(h))
        if self.linear:
            return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))  # (B, C, H, W)


class AttentionBlock(Attention):
    """Plain self-attention over the places of a feature map, around a shortcut."""

    def __init__(self, width: int, heads: int = 1, *, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__(width, heads, bias=True)
        self.group_norm = GroupNorm(groups, width, eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W). The context is not looked at; it is there so that a level may hold this block or a SpatialTransformer."""
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + super().forward(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)
