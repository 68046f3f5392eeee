"""Detecting copies: the nearest training image of each generated image, and whether it is nearer than expected by chance.

Images from a model that learned the distribution are as far from the training images as new real images; copies are nearer.
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
    """The k nearest neighbours of N queries, nearest first: root-mean-square `distance` (N, k) float64 and `index` (N, k)."""

    distance: Tensor
    index: Tensor


def nearest_neighbours(queries: Tensor, corpus: Tensor, k: int = 1, *, chunk: int = 4096) -> Neighbours:
    """Search a corpus (M, *) for the k nearest neighbours of each query (N, *) by root-mean-square difference per element.

    For images this is in pixel units (2 is black to white for pixels in [−1, 1]) for any image size. Memory is N × chunk. Ties keep the
    order of the corpus.
    """
    if queries.shape[1:] != corpus.shape[1:] or not 1 <= k <= len(corpus):
        raise DaguerreError(
            f"Cannot find {k} neighbours of queries {tuple(queries.shape)} in a corpus {tuple(corpus.shape)}; shapes and k must fit."
        )
    x = queries.flatten(1).double()
    best = x.new_empty(len(x), 0)
    index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for start in range(0, len(corpus), chunk):
        part = corpus[start : start + chunk].flatten(1).double()
        squared = _squared_distances(x, part)
        best = torch.cat([best, squared], 1)
        index = torch.cat([index, torch.arange(start, start + len(part), device=x.device).expand(len(x), -1)], 1)
        best, order = best.sort(dim=1, stable=True)
        best, index = best[:, :k], index.gather(1, order[:, :k])
    return Neighbours((best / x.shape[1]).sqrt(), index)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) of vectors (N, D) and (M, D). |x|² + |y|² − 2·x·y in float64: one matrix product, exact to about 1e-7 even for copies."""
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def precision_recall(generated: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """The share of generated features (N, D) among the real ones (M, D), and the reverse.

    A feature is among others if it is no farther from one of them than that one's k-th neighbour (Kynkäänniemi et al. 2019,
    arXiv:1904.06991, equations 1 and 2).
    """
    return _covered(generated, real, k), _covered(real, generated, k)


def _covered(queries: Tensor, corpus: Tensor, k: int, chunk: int = 1024) -> float:
    k = min(k, len(corpus) - 1)
    radius = nearest_neighbours(corpus, corpus, k + 1).distance[:, k].square() * corpus.shape[1]  # the nearest is the feature itself
    x, covered = queries.double(), torch.zeros(len(queries), dtype=torch.bool)
    for start in range(0, len(corpus), chunk):
        part = slice(start, start + chunk)
        covered |= (_squared_distances(x, corpus[part].double()) <= radius[part]).any(1)
    return covered.double().mean().item()


@dataclass(frozen=True)
class Copying:
    """Statistics of distances to the nearest training image. `generated` and `held_out` are their 5, 50 and 95 % quantiles."""

    nearer: float  # P(d(generated) < d(held out)), ties count half: 0.5 means new, 1 means copied
    copied: float  # fraction of generated images nearer than 99 % of the held-out images: 0.01 by chance
    generated: tuple[float, float, float]
    held_out: tuple[float, float, float]


def copying(generated: Tensor, held_out: Tensor) -> Copying:
    """Compare the nearest-training-image distances of generated images (N,) with those of held-out real images (M,)."""
    generated, held_out = generated.double(), held_out.double()
    ordered = held_out.sort().values
    farther = len(ordered) - torch.searchsorted(ordered, generated, right=True)  # held-out images farther than each generated image
    at_least_as_far = len(ordered) - torch.searchsorted(ordered, generated, right=False)
    nearer = (farther + at_least_as_far).double().mean() / (2 * len(ordered))
    points = generated.new_tensor([0.05, 0.5, 0.95])
    quantiles = [tuple(torch.quantile(d, points).tolist()) for d in (generated, held_out)]
    copied = (generated < torch.quantile(held_out, 0.01)).double().mean()
    return Copying(nearer.item(), copied.item(), *quantiles)
