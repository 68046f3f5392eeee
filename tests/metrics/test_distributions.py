"""The Fréchet distance against closed forms and scipy's matrix root; KID against its double sum and analytic moments."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from daguerre.errors import DaguerreError
from daguerre.metrics import ClassSums, Gaussian, Moments, frechet, frechet_distance, kernel_distance, squared_mmd


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_scipy(x: torch.Tensor, y: torch.Tensor) -> float:
    """The usual way: the root of the unsymmetric product of the covariances."""
    a, b = x.numpy(), y.numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(root)))


def test_gaussians_whose_covariances_commute():
    """With S₁ = diag(a²), S₂ = diag(b²): d² = |m₁ − m₂|² + |a − b|²."""
    a, b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.0, 0.5]).double()
    m, n = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    got = frechet(Gaussian.of_moments(m, a.square().diag()), Gaussian.of_moments(n, b.square().diag()))
    assert got == pytest.approx(5 + 4 + 4, abs=1e-12)


def test_gaussians_in_the_plane():
    """In two dimensions tr √M = √(tr M + 2·√det M) for M = S₁·S₂: a closed form for covariances that don't commute."""
    s1 = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double()
    s2 = torch.tensor([[0.5, -0.3], [-0.3, 4.0]]).double()
    m = s1 @ s2
    wanted = s1.trace() + s2.trace() - 2 * (m.trace() + 2 * torch.linalg.det(m).sqrt()).sqrt()
    zero = torch.zeros(2)
    assert frechet(Gaussian.of_moments(zero, s1), Gaussian.of_moments(zero, s2)) == pytest.approx(wanted.item(), abs=1e-12)


def test_features_against_scipy():
    x = normal(300, 12) @ normal(12, 12, seed=1)
    y = normal(250, 12, seed=2) @ normal(12, 12, seed=3) + 0.5
    assert frechet_distance(x, y) == pytest.approx(by_scipy(x, y), rel=1e-9)


def test_features_and_moments_agree():
    x, y = normal(80, 6), normal(90, 6, seed=1) * 2 + 1
    by_moments = frechet(Gaussian.of_moments(x.mean(0), x.T.cov()), Gaussian.of_moments(y.mean(0), y.T.cov()))
    assert frechet_distance(x, y) == pytest.approx(by_moments, rel=1e-10)


def test_singular_covariances_give_the_exact_distance():
    """20 images in 256 dimensions, where the root of the product is ill-defined: the answers for a shift and a scale are still known."""
    x = normal(20, 256)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    shift = normal(256, seed=5)
    assert frechet_distance(x, x + shift) == pytest.approx(shift.square().sum().item(), rel=1e-10)
    assert frechet_distance(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * x.T.cov().trace().item(), rel=1e-10)  # |a − b|² with b = 3·a


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 40), st.integers(1, 16))
def test_frechet_distance_is_symmetric_and_rotation_invariant(seed: int, n: int, m: int, d: int):
    x, y = normal(n, d, seed=seed), 2 * normal(m, d, seed=seed + 1) + 1
    q = torch.linalg.qr(normal(d, d, seed=seed + 2)).Q
    there = frechet_distance(x, y)
    assert there >= 0
    assert frechet_distance(y, x) == pytest.approx(there, rel=1e-9, abs=1e-9)
    assert frechet_distance(x @ q, y @ q) == pytest.approx(there, rel=1e-9, abs=1e-9)


def test_sampled_gaussians_approximate_the_exact_distance():
    x, y = normal(40_000, 3), normal(40_000, 3, seed=1) * torch.tensor([1.0, 2.0, 3.0]).double() + 1
    assert frechet_distance(x, y) == pytest.approx(3 + 0 + 1 + 4, rel=0.02)


def test_mmd_equals_the_double_sum():
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1
    k = lambda a, b: (float(a @ b) / 3 + 1) ** 3  # noqa: E731
    xx = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    yy = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    xy = sum(k(x[i], y[j]) for i in range(7) for j in range(5)) / 35
    assert squared_mmd(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_kid_is_unbiased_for_gaussians_with_known_moments():
    """In one dimension (xy + 1)³ = Σ C(3,k)·xᵏ·yᵏ, so MMD² = 3·Δm₁² + 3·Δm₂² + Δm₃² in the raw moments; here N(0, 1) and N(1/2, 1)."""
    wanted = 3 * 0.5**2 + 3 * 0.25**2 + (0.5**3 + 3 * 0.5) ** 2
    x, y, z = normal(60, 200, 1), normal(60, 200, 1, seed=1) + 0.5, normal(60, 200, 1, seed=2)
    apart = torch.tensor([squared_mmd(a, b) for a, b in zip(x, y, strict=True)])
    assert apart.mean().item() == pytest.approx(wanted, abs=3 * apart.std().item() / 60**0.5)
    same = torch.tensor([squared_mmd(a, b) for a, b in zip(x, z, strict=True)])
    assert same.mean().item() == pytest.approx(0, abs=3 * same.std().item() / 60**0.5)
    assert same.min() < 0  # unbiased: a biased one could never fall below zero


def test_kid_over_subsets_has_the_mean_of_the_full_estimate():
    x, y = normal(300, 8), normal(500, 8, seed=1) * 1.3
    whole, parts = kernel_distance(x, y, size=1000), kernel_distance(x, y, subsets=60, size=100, seed=4)
    assert whole.mean == squared_mmd(x, y)
    assert whole.deviation == 0
    assert parts.mean == pytest.approx(whole.mean, abs=4 * parts.deviation / 60**0.5)
    assert parts == kernel_distance(x, y, subsets=60, size=100, seed=4)
    assert parts.deviation > 0


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(1, 4), "N of 2 or more"), (torch.zeros(4), "N of 2 or more"), (torch.full((3, 2), torch.nan), "NaN")],
)
def test_invalid_features_raise(x: torch.Tensor, message: str):
    for measure in (frechet_distance, kernel_distance):
        with pytest.raises(DaguerreError, match=message):
            measure(x, torch.zeros(4, 4))


def test_features_of_different_widths_raise():
    with pytest.raises(DaguerreError, match="4 and 5 dimensions"):
        frechet_distance(normal(9, 4), normal(9, 5))


class Identity(torch.nn.Module):
    """Features of their own, for torchmetrics."""

    num_features = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_distances_of_sums_equal_torchmetrics():
    """In float64. KID of all features at once, and the Inception score in one split."""
    x, y = normal(300, 16), 1.2 * normal(260, 16, seed=1) + 0.3
    fid = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    fid.update(x, real=False)
    fid.update(y, real=True)
    parts = [Moments.of_features(x[:100]) + Moments.of_features(x[100:]), Moments.of_features(y)]
    assert frechet(*map(Gaussian.of, parts)) == pytest.approx(float(fid.compute()), rel=1e-6)
    assert frechet(*map(Gaussian.of, parts)) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    kid = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=260).set_dtype(torch.float64)
    kid.update(x[:260], real=False)
    kid.update(y, real=True)
    assert kernel_distance(x[:260], y).mean == pytest.approx(float(kid.compute()[0]), rel=1e-6)
    score = InceptionScore(feature=Identity(), splits=1).set_dtype(torch.float64)
    score.update(x)
    sums = ClassSums.of_logits(x[:17]) + ClassSums.of_logits(x[17:])
    assert sums.inception_score() == pytest.approx(float(score.compute()[0]), rel=1e-6)


def test_sums_of_one_image_or_of_nan_are_an_error():
    for features in (normal(1, 3), normal(4, 3) * float("nan")):
        with pytest.raises(DaguerreError, match="two or more images"):
            _ = Moments.of_features(features).covariance
