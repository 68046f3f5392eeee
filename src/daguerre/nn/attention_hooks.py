"""Watching a network's cross-attentions from outside: what they ask and what they are offered, while they answer as ever."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from daguerre.nn.attention import Attention, SpatialTransformer, TransformerBlock, attention

GridSize = tuple[int, int]
AttentionCallback = Callable[[GridSize, Tensor, Tensor], None]  # (H, W) of the feature map, q (B, heads, H·W, d), k (B, heads, M, d)


@contextmanager
def capture_cross_attention(network: nn.Module, see: AttentionCallback) -> Iterator[None]:
    """Within this context `see` is shown the queries and keys of every cross-attention; the answers stay bit-identical."""
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    hooks, changed = [], []
    try:
        for transformer in transformers:
            look = _AttentionProbe(see)
            hooks.append(transformer.register_forward_pre_hook(look.enter))
            for block in transformer.transformer_blocks:
                for attention in cross_attentions(block):
                    attention.attend = look
                    changed.append(attention)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for attention in changed:
            del attention.attend  # the instance's; the class's shows again


def attention_probs(q: Tensor, k: Tensor) -> Tensor:
    """softmax(QKᵀ / √d), the mean over the heads, for what `See` is shown: (B, H·W, M) float32."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=torch.float32).mean(1)


def cross_attentions(block: nn.Module) -> list[Attention]:
    """The attentions of a block that look at the context."""
    assert isinstance(block, TransformerBlock)
    return [block.attn1, block.attn2] if block.cross_only else [block.attn2]


@dataclass
class _AttentionProbe:
    """Stands for `attend` in one spatial transformer, whose feature map's size only the transformer itself knows."""

    see: AttentionCallback
    size: GridSize = (0, 0)

    def enter(self, _transformer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.size = inputs[0].shape[2], inputs[0].shape[3]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.see(self.size, q, k)
        return attention(q, k, v)
