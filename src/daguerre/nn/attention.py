"""Attention, softmax(QKᵀ / √d)·V  (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), and the blocks that apply it to feature maps.

AttentionBlock: Ho et al. 2020, arXiv:2006.11239, appendix B.  SpatialTransformer: Rombach et al. 2022, arXiv:2112.10752, §3.3, app. E.2.1.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.cpu.attention import cpu_attention
from daguerre.nn.norm import GroupNorm

TRANSFORMER_NORM_EPS = 1e-6  # of the group norm before a spatial transformer, whatever the residual blocks use

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]  # (q, k, v) to the result, as `attention`


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ / √d)·V for q (B, heads, L, d), k and v (B, heads, M, d); returns (B, heads, L, d)."""
    return cpu_attention(q, k, v) if q.device.type == "cpu" else F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head attention of x over a context, or over x itself without one.

    width: channels of x, split evenly over the heads. bias: for the three input projections.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"A width of {width} is not a multiple of {heads} heads; choose a multiple.")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width or width, width, bias=bias)
        self.to_v = nn.Linear(context_width or width, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    attend: AttentionFn = staticmethod(attention)  # `nn.attention_hooks` replaces it on an instance

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, L, C); context: (B, M, D). Returns (B, L, C)."""
        y = self._attend_to(self.split_heads(self.to_q(x)), x if context is None else context)  # (B, heads, L, C/heads)
        return self.to_out(y.transpose(1, 2).flatten(2))  # (B, L, C)

    def _attend_to(self, q: Tensor, context: Tensor) -> Tensor:
        """The attention of queries (B, heads, L, d) over a context (B, M, D)."""
        return self.attend(q, self.split_heads(self.to_k(context)), self.split_heads(self.to_v(context)))

    def split_heads(self, y: Tensor) -> Tensor:
        """(B, M, C) to (B, heads, M, C/heads)."""
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def repeat_to_batch(x: Tensor, batch: int) -> Tensor:
    """Repeat x (B, *) to `batch` rows, a multiple of B; x itself if it has them.

    With classifier-free guidance the batch repeats the same latents once per condition, [a, b, a, b]. Layers before the first
    cross-attention give identical results for all conditions, so they run once, on [a, b].
    """
    return x if len(x) == batch else x.repeat(batch // len(x), *[1] * (x.ndim - 1))


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
    """Self-attention, cross-attention and a feed-forward block, each after a layer norm and with a residual connection.

    cross_only: the first attention is cross-attention, too (as in the upper levels of the ×4 upscaler).
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
    """Transformer blocks over the positions of a feature map, between two projections, with a residual connection.

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

        x may hold a batch of B/n, shared by n guidance conditions (see `repeat_to_batch`); the result has the context's batch.
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
    """Self-attention over the positions of a feature map, with a residual connection."""

    def __init__(self, width: int, heads: int = 1, *, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__(width, heads, bias=True)
        self.group_norm = GroupNorm(groups, width, eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W). The context is ignored; with it, this block and SpatialTransformer are called alike."""
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + super().forward(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)
