"""IP-Adapter: images as prompts. CLIP's states of an image become a few tokens, to which each cross-attention attends apart from the text:

    attention(q, K text, V text) + scale · attention(q, K' image, V' image)

Ye et al. 2023, arXiv:2308.06721, section 3.2. The three projections are those of the published files; parameters have their names.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from daguerre.models.clip import VisionStates
from daguerre.nn.attention import Attention, attention

HEAD_WIDTH = 64  # of the resampler, in all published files


class PooledProjection(nn.Module):
    """The plain adapter: the embedding of an image (P) as `tokens` tokens of width D."""

    hidden = False  # needs the projected embedding, not the hidden states

    def __init__(self, in_width: int, width: int, tokens: int) -> None:
        super().__init__()
        self.in_width = in_width
        self.proj = nn.Linear(in_width, tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, P). Returns (B, tokens, D)."""
        return self.norm(self.proj(x).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class FullProjection(nn.Module):
    """The "full" adapter: every hidden state of the image as a token, through two linear layers."""

    hidden = True

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.in_width = in_width
        self.proj = nn.Sequential(nn.Linear(in_width, in_width), nn.GELU(), nn.Linear(in_width, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, M, W). Returns (B, M, D)."""
        return self.proj(x)


class ResamplerAttention(nn.Module):
    """Learned queries attend to the hidden states of the image and to each other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm1(x), self.norm2(latents)
        states = self.to_q(latents), *self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for y in states)  # (B, heads, N or M + N, 64)
        return self.to_out(attention(q, k, v).transpose(1, 2).flatten(2))  # (B, N, W)


class Resampler(nn.Module):
    """The "plus" adapter: N learned tokens that attend to the hidden states of the image (Perceiver; arXiv:2204.14198, section 3.1.1)."""

    hidden = True

    def __init__(self, in_width: int, width: int, out_width: int, tokens: int, depth: int, inner: int, mlp_width: int) -> None:
        super().__init__()
        self.in_width = in_width
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in = nn.Linear(in_width, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    ResamplerAttention(width, inner),
                    nn.Sequential(
                        nn.LayerNorm(width), nn.Linear(width, mlp_width, bias=False), nn.GELU(), nn.Linear(mlp_width, width, bias=False)
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, out_width)
        self.norm_out = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, M, W). Returns (B, N, D)."""
        x, latents = self.proj_in(x), self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            attend, mlp = layer.children()
            latents = latents + attend(x, latents)
            latents = latents + mlp(latents)
        return self.norm_out(self.proj_out(latents))


ImageProjection = PooledProjection | FullProjection | Resampler


def image_states(projection: ImageProjection, states: VisionStates) -> Tensor:
    """What a projection reads of an image encoder's output: the states before the last block, or the projected embedding."""
    if projection.hidden:
        return states.hidden[-2]
    assert states.projected is not None
    return states.projected


class ImageKeys(nn.Module):
    """The keys and values of one adapter in one layer. tokens: how many it has in the context. scale: its strength."""

    def __init__(self, to_k: Tensor, to_v: Tensor, tokens: int, scale: float) -> None:
        super().__init__()
        self.to_k = nn.Linear(*reversed(to_k.shape), bias=False, device="meta")
        self.to_v = nn.Linear(*reversed(to_v.shape), bias=False, device="meta")
        for layer, weight in ((self.to_k, to_k), (self.to_v, to_v)):
            layer.weight = nn.Parameter(weight, requires_grad=False)
        self.tokens, self.scale = tokens, scale


class ImageAttention(Attention):
    """A cross-attention layer with adapters, whose image tokens follow the text in the context."""

    images: nn.ModuleList

    @classmethod
    def over(cls, layer: Attention, images: Sequence[ImageKeys]) -> Self:
        """The layer, whose parts it shares, with adapters."""
        new = cls.__new__(cls)
        new.__dict__.update(layer.__dict__)
        new._modules = {**layer._modules, "images": nn.ModuleList(images)}
        return new

    def _attend_to(self, q: Tensor, context: Tensor) -> Tensor:
        images = [each for each in self.images if isinstance(each, ImageKeys)]
        counts = [each.tokens for each in images]
        text, *parts = context.split([context.shape[1] - sum(counts), *counts], dim=1)
        y = super()._attend_to(q, text)
        for each, tokens in zip(images, parts, strict=True):
            y = y + each.scale * attention(q, self.split_heads(each.to_k(tokens)), self.split_heads(each.to_v(tokens)))
        return y
