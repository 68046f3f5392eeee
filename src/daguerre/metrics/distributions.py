"""How far one set of images is from another, seen through the features of a network.

Fréchet distance of two Gaussians, d² = |m₁ − m₂|² + tr(S₁ + S₂ − 2·(S₁·S₂)^½) (Dowson and Landau 1982; Heusel et al. 2017,
arXiv:1706.08500, eq. 6). With S = RᵀR the trace of the root is a nuclear norm, tr (S₁·S₂)^½ = ‖R₁·R₂ᵀ‖_*, for the nonzero eigenvalues
of S₁·S₂ are the squared singular values of R₁·R₂ᵀ. So no root of an unsymmetric matrix is ever taken; and R comes from the features by a
QR decomposition, so that the covariance, whose condition is the square of theirs, is never formed.

KID = squared maximum mean discrepancy under k(x, y) = (x·y/D + 1)³, unbiased (Bińkowski et al. 2018, arXiv:1801.01401, section 4;
Gretton et al. 2012, eq. 3).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from daguerre.errors import DaguerreError


def features_of(images: Iterable[Tensor], embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Send batches of images (b, C, H, W) through `embed` -> (b, D), and return all of it as (N, D) float64 on the CPU."""
    with torch.inference_mode():
        batches = [embed(x).flatten(1).to("cpu", torch.float64) for x in images]
    if not batches:
        raise DaguerreError("No images to measure. Give at least two.")
    return torch.cat(batches).clone()  # (N, D); cloned out of inference mode


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution by its mean (D,) and a root (R, D) of its covariance, rootᵀ·root = S; float64."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of_features(cls, features: Tensor) -> "Gaussian":
        """Fit features (N, D), N ≥ 2, with the sample's covariance (divided by N − 1)."""
        x = _checked(features)
        mean = x.mean(0)
        return cls(mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R)  # root (min(N, D), D)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor) -> "Gaussian":
        """From a mean (D,) and a symmetric covariance (D, D). Eigenvalues that rounding made negative count as 0."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), values.clamp(min=0).sqrt()[:, None] * vectors.T)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance of two Gaussians, ≥ 0, in the squared units of the features."""
    if a.mean.shape != b.mean.shape:
        raise DaguerreError(f"Features of {a.mean.numel()} and {b.mean.numel()} dimensions can't be compared; use one network for both.")
    overlap = torch.linalg.svdvals(a.root @ b.root.T).sum()
    # tr S = ‖R‖²; rounding alone could leave −1e-15 where the Gaussians are one.
    squared = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * overlap
    return max(squared.item(), 0.0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The squared Fréchet distance between features (N, D) and (M, D); with Inception's pool features this number is known as FID.

    It is biased upwards where N and M are not far above D, so compare only numbers of one N and M, and beside the distance between two sets
    of true images of that size.
    """
    return frechet(Gaussian.of_features(x), Gaussian.of_features(y))


@dataclass(frozen=True)
class KID:
    """An estimate of the squared MMD, and its standard deviation over the subsets it was averaged over (0 for a single one)."""

    mean: float
    deviation: float


def kernel_distance(x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> KID:
    """Kernel inception distance between features (N, D) and (M, D): the unbiased squared MMD, averaged over random subsets of `size`.

    Where both sets have no more than `size` features, all of them are used, once. Unbiased means that it's near 0, on either side, for two
    sets of one distribution, however few.
    """
    x, y = _checked(x), _checked(y)
    if len(x) <= size and len(y) <= size:
        return KID(squared_mmd(x, y), 0.0)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda f: f[torch.randperm(len(f), generator=generator)[:size]]  # noqa: E731
    values = torch.tensor([squared_mmd(draw(x), draw(y)) for _ in range(subsets)], dtype=torch.float64)
    return KID(values.mean().item(), values.std(correction=0).item())


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared MMD of features (N, D) and (M, D) under k(x, y) = (x·y/D + 1)³: a sample is never compared with itself."""
    x, y = _checked(x), _checked(y)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return (within[0] + within[1] - 2 * kernel(x, y).mean()).item()


def split_half_distance(features: Tensor, *, seed: int = 0) -> Iterator[Tensor]:
    """Split features (N, D) at random into two of N // 2: what a distance between them is, is what the measure calls zero."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    half = len(features) // 2
    yield features[order[:half]]
    yield features[order[half : 2 * half]]


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise DaguerreError(f"A distribution needs features (N, D) of at least two images; given {tuple(features.shape)}.")
    if not features.isfinite().all():
        raise DaguerreError("The features contain NaN or infinity, so no distance can be measured. Check the images and the network.")
    return features.double()
