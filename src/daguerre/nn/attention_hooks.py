"""Read the queries and keys of a network's attention layers without changing its results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from daguerre.nn.attention import Attention, AttentionBlock, SpatialTransformer, TransformerBlock, attention

GridSize = tuple[int, int]  # (height, width) of a feature map
AttentionCallback = Callable[[GridSize, Tensor, Tensor], None]  # (H, W), q (B, heads, H·W, d), k (B, heads, M, d)


@contextmanager
def capture_cross_attention(network: nn.Module, callback: AttentionCallback) -> Iterator[None]:
    """Within this context, call `callback` with the queries and keys of every cross-attention; results stay bit-identical."""
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    layers = [(each, [layer for block in each.transformer_blocks for layer in cross_attentions(block)]) for each in transformers]
    with _capture(layers, callback):
        yield


@contextmanager
def capture_self_attention(network: nn.Module, callback: AttentionCallback) -> Iterator[None]:
    """The same for every self-attention: of transformer blocks, and of the attention blocks of networks without a context."""
    layers: list[tuple[nn.Module, list[Attention]]] = []
    for module in network.modules():
        if isinstance(module, SpatialTransformer):
            layers.append((module, [layer for block in module.transformer_blocks for layer in self_attentions(block)]))
        elif isinstance(module, AttentionBlock):
            layers.append((module, [module]))
    with _capture(layers, callback):
        yield


@contextmanager
def _capture(layers: Sequence[tuple[nn.Module, Sequence[Attention]]], callback: AttentionCallback) -> Iterator[None]:
    """Probe attention layers, each given with the module around it whose input is the feature map."""
    hooks, changed = [], []
    try:
        for module, attentions in layers:
            probe = _AttentionProbe(callback)
            hooks.append(module.register_forward_pre_hook(probe.remember_size))
            for layer in attentions:
                layer.attend = probe
                changed.append(layer)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in changed:
            del layer.attend  # removes the override; the method of the class remains


def attention_probs(q: Tensor, k: Tensor) -> Tensor:
    """softmax(QKᵀ / √d), averaged over the heads, of the arguments of an AttentionCallback: (B, H·W, M) float32."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=torch.float32).mean(1)


def cross_attentions(block: nn.Module) -> list[Attention]:
    """The cross-attention layers of a transformer block."""
    assert isinstance(block, TransformerBlock)
    return [block.attn1, block.attn2] if block.cross_only else [block.attn2]


def self_attentions(block: nn.Module) -> list[Attention]:
    """The self-attention layers of a transformer block."""
    assert isinstance(block, TransformerBlock)
    return [] if block.cross_only else [block.attn1]


@dataclass
class _AttentionProbe:
    """Replaces `Attention.attend` inside one module, whose input gives the size of the feature map."""

    callback: AttentionCallback
    size: GridSize = (0, 0)

    def remember_size(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.size = inputs[0].shape[2], inputs[0].shape[3]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.callback(self.size, q, k)
        return attention(q, k, v)
