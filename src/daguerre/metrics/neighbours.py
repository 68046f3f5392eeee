"""Is the model copying? The nearest training image of each generated one, and whether it's nearer than chance would bring it.

A generator that learned the distribution lies as far from its training images as new true images do. One that copies lies nearer.
With d(·) the distance to the nearest training image, P(d(generated) < d(held out)) is 1/2 for the first and goes to 1 for the second
(Meehan et al. 2020, "A non-parametric test to detect data-copying in generative models", arXiv:2004.05675, section 3; it is the
Mann–Whitney U divided by n·m).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class Neighbours:
    """Of each query its k nearest in a corpus, nearest first: root-mean-square `distance` (N, k) float64 and `index` (N, k)."""

    distance: Tensor
    index: Tensor


def nearest_neighbours(queries: Tensor, corpus: Tensor, k: int = 1, *, chunk: int = 4096) -> Neighbours:
    """Search a corpus (M, *) for the k nearest of each query (N, *), where near is a small root-mean-square difference per element.

    So the distance of images is in pixel units (2 is black to white for pixels in [-1, 1]) whatever their size. The corpus is walked in
    chunks; memory is N × chunk. Equal distances keep the order of the corpus.
    """
    if queries.shape[1:] != corpus.shape[1:] or not 1 <= k <= len(corpus):
        raise DaguerreError(f"Can't find {k} neighbours of {tuple(queries.shape)} in a corpus of {tuple(corpus.shape)}.")
    x = queries.flatten(1).double()
    best = x.new_empty(len(x), 0)
    index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for start in range(0, len(corpus), chunk):
        part = corpus[start : start + chunk].flatten(1).double()
        # |x|² + |y|² − 2·x·y in float64: one matrix product, and still exact to 1e-7 for a copy.
        squared = (x.square().sum(1, keepdim=True) + part.square().sum(1) - 2 * x @ part.T).clamp(min=0)
        best = torch.cat([best, squared], 1)
        index = torch.cat([index, torch.arange(start, start + len(part), device=x.device).expand(len(x), -1)], 1)
        best, order = best.sort(dim=1, stable=True)
        best, index = best[:, :k], index.gather(1, order[:, :k])
    return Neighbours((best / x.shape[1]).sqrt(), index)


@dataclass(frozen=True)
class Copying:
    """What the distances to the training images say. `generated` and `held_out` are their quantiles at 5, 50 and 95 per cent."""

    nearer: float  # P(d(generated) < d(held out)), ties by halves: 0.5 is new, 1 is copied
    copied: float  # share of generated images nearer than 99 per cent of the held-out ones: 0.01 by chance
    generated: tuple[float, float, float]
    held_out: tuple[float, float, float]


def copying(generated: Tensor, held_out: Tensor) -> Copying:
    """Compare the nearest-training-image distances of generated images (N,) with those of held-out true images (M,)."""
    generated, held_out = generated.double(), held_out.double()
    ordered = held_out.sort().values
    above = len(ordered) - torch.searchsorted(ordered, generated, right=True)  # held-out images strictly farther than each generated one
    at_least = len(ordered) - torch.searchsorted(ordered, generated, right=False)
    nearer = (above + at_least).double().mean() / (2 * len(ordered))
    points = generated.new_tensor([0.05, 0.5, 0.95])
    quantiles = [tuple(torch.quantile(d, points).tolist()) for d in (generated, held_out)]
    copied = (generated < torch.quantile(held_out, 0.01)).double().mean()
    return Copying(nearer.item(), copied.item(), *quantiles)
