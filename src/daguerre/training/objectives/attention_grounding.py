"""Grounding: attention to a noun is kept on its thing, where the program knows the thing's place.

    L = mean over nouns n of ᾱ_t·(1 − Σ_u m(u)·A_n(u) / Σ_u A_n(u))²        (TokenCompose: Wang et al. 2024, arXiv:2312.03626, section 3.2)

A_n(u) is the share of attention that noun n has at place u, the mean over heads and layers: one call's part of the map that
`pipelines.attention` draws. m(u) is how much of place u the thing covers, 1 where that is most (in the paper 0 or 1). The loss asks where
the network looks for a noun, not how much, and asks it of the mean alone, so that a head stays free to look elsewhere. ᾱ_t, the picture's
share of x_t, is not in the paper: where noise hides the thing, nobody can tell its place.

Without it, nothing makes attention point: what one place reads, self-attention carries to any other, so that a network may as well read
"circle" from the background, the padding or another word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.conditioning import Conditioner
from daguerre.conditioning.prompt import WeightedText
from daguerre.data import BatchLoader, Dataset
from daguerre.data.condition_maps import SHAPES_NOUNS, load_condition_maps
from daguerre.data.images import to_tensor
from daguerre.nn.attention_hooks import GridSize, attention_probs


class AttentionMaps:
    """What `nn.watching.watched` shows of one call: its attention, layer by layer, with the gradient."""

    def __init__(self) -> None:
        self.layers: list[tuple[GridSize, Tensor]] = []  # (B, H·W, tokens)

    def add(self, size: GridSize, q: Tensor, k: Tensor) -> None:
        self.layers.append((size, attention_probs(q, k)))

    def mean(self) -> Tensor:
        """The mean over heads and layers (B, tokens, H, W), the size of the largest feature map."""
        height, width = (max(side) for side in zip(*(size for size, _ in self.layers), strict=True))
        maps = [weights.transpose(1, 2).unflatten(2, size) for size, weights in self.layers]
        return torch.stack([F.interpolate(each, (height, width)) if each.shape[2:] != (height, width) else each for each in maps]).mean(0)


@dataclass(frozen=True)
class Grounding:
    """The loss and its weight. nouns: words, and the class of thing that each names."""

    weight: float
    conditioner: Conditioner
    nouns: Mapping[str, int] = field(default_factory=lambda: SHAPES_NOUNS)

    def loss(self, looks: AttentionMaps, captions: Sequence[str], covered: Tensor, alpha_bar: Tensor) -> Tensor:
        """The loss (), 0 where no caption has a noun.

        Args:
            captions: what the network was told in each of the B rows.
            covered: how much of each place each class covers, (B, K, h, w) in [0, 1].
            alpha_bar: ᾱ_t of each row, (B,).
        """
        attention = looks.mean()  # (B, tokens, H, W)
        said = [(row, *noun) for row, caption in enumerate(captions) for noun in self._nouns(caption, attention.shape[1])]
        if not said:
            return attention.sum() * 0
        maps = torch.stack([attention[row, positions].sum(0) for row, positions, _ in said])  # (nouns, H, W)
        things = torch.stack([covered[row, klass].to(maps) for row, _, klass in said])  # (nouns, h, w)
        lost = off_object_attention(maps, F.adaptive_avg_pool2d(things, (maps.shape[1], maps.shape[2])))
        return (alpha_bar[[row for row, _, _ in said]] * lost).mean()

    def _nouns(self, caption: str, tokens: int) -> list[tuple[list[int], int]]:
        """Where the tokens of each noun stand in a caption that is cut to so many tokens, and the noun's class."""
        words = self.conditioner.words(((WeightedText(caption, 1.0),),))
        nouns = [(list(word.positions), self.nouns[word.text]) for word in words if word.text in self.nouns]
        return [(positions, klass) for positions, klass in nouns if positions[-1] < tokens]


def off_object_attention(maps: Tensor, things: Tensor) -> Tensor:
    """(1 − …)² of the equation above (N,), of maps A_n (N, H, W) and how much of each place the things cover (N, H, W), in [0, 1]."""
    most = things.amax((1, 2), keepdim=True).clamp(min=1e-6)
    inside = (maps * things / most).sum((1, 2)) / maps.sum((1, 2)).clamp(min=1e-12)
    return (1 - inside).square()


def coverage(drawn: BatchLoader, source: Dataset, count: int, side: int) -> Tensor:
    """How much of each of side × side places each class covers, (count, K, side, side) float16, of the first samples of `drawn`.

    Raises:
        DaguerreError: `source`, of which they were drawn, does not know where its things are.
    """
    maps, palette = load_condition_maps(source, "semantic")
    batches = BatchLoader(maps, drawn.batch_size, drawn.seed, drawn.size)  # of one seed, so that the maps are those of the pictures
    colours = to_tensor(np.array(palette, dtype=np.uint8)[:, None, None])  # (K, 3, 1, 1)
    shares = []
    for step in range(-(-count // drawn.batch_size)):
        shown = ((batches.batch(step).x[:, None] - colours).abs().amax(2) < 1 / 255).float()  # (B, K, H, W)
        shares.append(F.adaptive_avg_pool2d(shown, side).half())
    return torch.cat(shares)[:count]
