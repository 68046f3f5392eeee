"""Attention grounding: a loss that keeps the cross-attention of a noun on its object, for images with known object positions.

    L = mean over nouns n of ᾱ_t·(1 − Σ_u m(u)·A_n(u) / Σ_u A_n(u))²        (TokenCompose: Wang et al. 2024, arXiv:2312.03626, section 3.2)

A_n(u) is the attention of position u to noun n, the mean over heads and layers. m(u) is the share of position u that the object covers,
divided by the largest share (in the paper 0 or 1). The loss depends on where the attention to a noun is, not on how much there is, and only
on the mean, so that single heads stay free. The factor ᾱ_t, the signal's share of x_t, is not in the paper: where noise hides the object,
its position is unknown.

Without this loss nothing ties attention to objects, because self-attention carries information between positions: a network can equally
well read "circle" from the background, the padding or another word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.conditioning import Conditioner
from daguerre.conditioning.prompt import WeightedText
from daguerre.data import BatchLoader, Dataset, to_tensor
from daguerre.data.condition_maps import SHAPES_NOUNS, load_condition_maps
from daguerre.nn.attention_hooks import GridSize, attention_probs


class AttentionMaps:
    """The attention of one UNet call, layer by layer, with its gradient. `add` is a callback of `capture_cross_attention`."""

    def __init__(self) -> None:
        self.layers: list[tuple[GridSize, Tensor]] = []  # (B, H·W, tokens)

    def add(self, size: GridSize, q: Tensor, k: Tensor) -> None:
        self.layers.append((size, attention_probs(q, k)))

    def mean(self) -> Tensor:
        """The mean over heads and layers, (B, tokens, H, W), in the size of the largest feature map."""
        height, width = (max(side) for side in zip(*(size for size, _ in self.layers), strict=True))
        maps = [weights.transpose(1, 2).unflatten(2, size) for size, weights in self.layers]
        return torch.stack([F.interpolate(m, (height, width)) if m.shape[2:] != (height, width) else m for m in maps]).mean(0)


@dataclass(frozen=True)
class Grounding:
    """The loss and its weight. nouns: words, and the object class of each."""

    weight: float
    conditioner: Conditioner
    nouns: Mapping[str, int] = field(default_factory=lambda: SHAPES_NOUNS)

    def loss(self, attention_maps: AttentionMaps, captions: Sequence[str], coverage: Tensor, alpha_bar: Tensor) -> Tensor:
        """The loss (), 0 if no caption contains a noun.

        Args:
            captions: the B captions of the UNet call.
            coverage: the share of each position that each class covers, (B, K, h, w) in [0, 1].
            alpha_bar: ᾱ_t of each row, (B,).
        """
        attention = attention_maps.mean()  # (B, tokens, H, W)
        found = [(row, *noun) for row, caption in enumerate(captions) for noun in self._nouns(caption, attention.shape[1])]
        if not found:
            return attention.sum() * 0
        maps = torch.stack([attention[row, tokens].sum(0) for row, tokens, _ in found])  # (nouns, H, W)
        objects = torch.stack([coverage[row, label].to(maps) for row, _, label in found])  # (nouns, h, w)
        losses = off_object_attention(maps, F.adaptive_avg_pool2d(objects, (maps.shape[1], maps.shape[2])))
        return (alpha_bar[[row for row, _, _ in found]] * losses).mean()

    def _nouns(self, caption: str, length: int) -> list[tuple[list[int], int]]:
        """The token positions and the class of each noun in a caption, up to `length` tokens."""
        words = self.conditioner.words(((WeightedText(caption, 1.0),),))
        nouns = [(list(word.positions), self.nouns[word.text]) for word in words if word.text in self.nouns]
        return [(positions, label) for positions, label in nouns if positions[-1] < length]


def off_object_attention(maps: Tensor, objects: Tensor) -> Tensor:
    """(1 − …)² of the equation above, (N,), of maps A_n (N, H, W) and the share of each position that the objects cover (N, H, W)."""
    largest = objects.amax((1, 2), keepdim=True).clamp(min=1e-6)
    on_object = (maps * objects / largest).sum((1, 2)) / maps.sum((1, 2)).clamp(min=1e-12)
    return (1 - on_object).square()


def coverage(batches: BatchLoader, source: Dataset, count: int, side: int) -> Tensor:
    """The share of each of side × side positions that each class covers in the first samples of `batches`: (count, K, side, side) float16.

    Raises:
        DaguerreError: `source`, the dataset of `batches`, does not know where its objects are.
    """
    maps, palette = load_condition_maps(source, "semantic")
    map_batches = BatchLoader(maps, batches.batch_size, batches.seed, batches.size)  # the same seed gives the maps of the same images
    colours = to_tensor(np.array(palette, dtype=np.uint8)[:, None, None])  # (K, 3, 1, 1)
    shares = []
    for step in range(-(-count // batches.batch_size)):
        matches = ((map_batches.batch(step).x[:, None] - colours).abs().amax(2) < 1 / 255).float()  # (B, K, H, W)
        shares.append(F.adaptive_avg_pool2d(matches, side).half())
    return torch.cat(shares)[:count]
