"""Distances between two sets of images on the features of a network.

Fréchet distance of two Gaussians, d² = |m₁ − m₂|² + tr(S₁ + S₂ − 2·(S₁·S₂)^½) (Dowson and Landau 1982; Heusel et al. 2017,
arXiv:1706.08500, eq. 6). With S = RᵀR the trace of the root is a nuclear norm, tr (S₁·S₂)^½ = ‖R₁·R₂ᵀ‖_*, because the nonzero
eigenvalues of S₁·S₂ are the squared singular values of R₁·R₂ᵀ. This avoids the root of an unsymmetric matrix. R comes from a QR
decomposition of the features, which avoids forming the covariance with its squared condition number.

KID = squared maximum mean discrepancy under k(x, y) = (x·y/D + 1)³, unbiased (Bińkowski et al. 2018, arXiv:1801.01401, section 4;
Gretton et al. 2012, eq. 3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution with mean (D,) and covariance S = rootᵀ·root, root (R, D); float64."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of_features(cls, features: Tensor) -> "Gaussian":
        """Fit features (N, D), N ≥ 2, with the sample covariance (divided by N − 1)."""
        x = _check_features(features)
        mean = x.mean(0)
        return cls(mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R)  # root (min(N, D), D)

    @classmethod
    def of(cls, moments: "Moments") -> "Gaussian":
        """Fit features by their sums."""
        return cls.of_moments(moments.mean, moments.covariance)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor) -> "Gaussian":
        """From a mean (D,) and a symmetric covariance (D, D), such as the reference statistics of FID tools. Negative eigenvalues
        (rounding errors) count as 0."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), values.clamp(min=0).sqrt()[:, None] * vectors.T)


@dataclass(frozen=True)
class Moments:
    """Sums over N features: enough for a normal distribution. The sums of parts add up, in any order up to the rounding of float64."""

    count: int
    total: Tensor  # (D,)
    products: Tensor  # (D, D), of xᵀ·x

    @classmethod
    def of_features(cls, features: Tensor) -> "Moments":
        """The sums over features (N, D)."""
        x = features.double()
        return cls(len(x), x.sum(0), x.T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """The sample covariance (D, D) float64, divided by N − 1. Raises DaguerreError for fewer than two features or NaN."""
        if self.count < 2 or not self.total.isfinite().all():
            raise DaguerreError("A distance needs two or more images, and features without NaN or infinity; check images and network.")
        return (self.products - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


@dataclass(frozen=True)
class ClassSums:
    """Sums over N images of their class probabilities p (K,) and of Σ p·ln p, for the Inception score; those of parts add up."""

    count: int
    probabilities: Tensor  # (K,) float64
    negative_entropy: float

    @classmethod
    def of_logits(cls, logits: Tensor) -> "ClassSums":
        """The sums over logits (N, K)."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        return cls(len(p), p.sum(0), float((p * log_p).sum()))

    def __add__(self, other: "ClassSums") -> "ClassSums":
        probabilities = self.probabilities + other.probabilities
        return ClassSums(self.count + other.count, probabilities, self.negative_entropy + other.negative_entropy)

    def inception_score(self) -> float:
        """exp E[KL(p(y|x) ‖ p(y))] ≥ 1 over all images, in one split (Salimans et al. 2016, arXiv:1606.03498, section 4)."""
        marginal = self.probabilities / self.count
        return math.exp(self.negative_entropy / self.count - float(torch.special.xlogy(marginal, marginal).sum()))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance between two Gaussians, ≥ 0, in squared feature units."""
    if a.mean.shape != b.mean.shape:
        raise DaguerreError(
            f"Features of {a.mean.numel()} and {b.mean.numel()} dimensions cannot be compared; use the same network for both."
        )
    overlap = torch.linalg.svdvals(a.root @ b.root.T).sum()
    # tr S = ‖R‖². Rounding can give −1e-15 for equal Gaussians.
    squared = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * overlap
    return max(squared.item(), 0.0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The squared Fréchet distance between features (N, D) and (M, D); with Inception's pool features this is FID.

    It is biased upwards unless N and M are much larger than D. Compare only numbers with the same N and M, and report the distance between
    two sets of real images of that size as a baseline.
    """
    return frechet(Gaussian.of_features(x), Gaussian.of_features(y))


@dataclass(frozen=True)
class KID:
    """An estimate of the squared MMD: mean and standard deviation over subsets (0 for a single one)."""

    mean: float
    deviation: float


def kernel_distance(x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> KID:
    """Kernel inception distance between features (N, D) and (M, D): the unbiased squared MMD, averaged over random subsets of `size`.

    If neither set has more than `size` features, all of them are used once. The estimate is unbiased: for two sets from one distribution it
    is near 0 and can be negative, even for small sets.
    """
    x, y = _check_features(x), _check_features(y)
    if len(x) <= size and len(y) <= size:
        return KID(squared_mmd(x, y), 0.0)
    generator = torch.Generator().manual_seed(seed)
    subset = lambda f: f[torch.randperm(len(f), generator=generator)[:size]]  # noqa: E731
    values = torch.tensor([squared_mmd(subset(x), subset(y)) for _ in range(subsets)], dtype=torch.float64)
    return KID(values.mean().item(), values.std(correction=0).item())


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared MMD of features (N, D) and (M, D) under k(x, y) = (x·y/D + 1)³: pairs of a sample with itself are excluded."""
    x, y = _check_features(x), _check_features(y)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return (within[0] + within[1] - 2 * kernel(x, y).mean()).item()


def _check_features(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise DaguerreError(f"Features must have shape (N, D) with N of 2 or more; got {tuple(features.shape)}.")
    if not features.isfinite().all():
        raise DaguerreError("The features contain NaN or infinity; check the images and the network.")
    return features.double()
