"""Intervals against scipy's, and against how often they hold the truth."""

import pytest
import scipy.stats
import torch

from daguerre.errors import DaguerreError
from daguerre.metrics import bootstrap, proportion


def test_bootstrap_of_a_mean_against_scipy():
    values = torch.randn(80, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    wanted = scipy.stats.bootstrap((values.numpy(),), lambda v, axis: v.mean(axis=axis), method="percentile", n_resamples=10_000, rng=1)
    got = bootstrap(values)
    assert got.value == pytest.approx(values.mean().item())
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    assert got.low == pytest.approx(wanted.confidence_interval.low, abs=0.03 * width)
    assert got.high == pytest.approx(wanted.confidence_interval.high, abs=0.03 * width)
    assert got.count == 80


def test_bootstrap_of_another_statistic():
    values = torch.arange(101.0)
    got = bootstrap(values, lambda v: v.median(1).values)
    assert got.value == 50
    # The median's standard error for a uniform density 1/100 is 1/(2·f·√n) = 50/√101.
    assert got.high - got.low == pytest.approx(2 * 1.96 * 50 / 101**0.5, rel=0.15)


def test_seed_determines_the_bootstrap_interval():
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_bootstrap_interval_has_the_stated_coverage():
    draws = torch.randn(400, 60, generator=torch.Generator().manual_seed(2))
    held = sum(i.low <= 0 <= i.high for i in (bootstrap(row, level=0.9, resamples=400) for row in draws)) / 400
    assert held == pytest.approx(0.9, abs=0.05)  # 400 trials: a standard error of 0.015, and 60 values fall 0.01 short


@pytest.mark.parametrize(("yes", "n"), [(0, 20), (7, 20), (20, 20), (412, 500)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_proportion_against_scipy(yes: int, n: int, level: float):
    wanted = scipy.stats.binomtest(yes, n).proportion_ci(level, method="wilson")
    got = proportion(torch.tensor([1.0] * yes + [0.0] * (n - yes)), level=level)
    assert (got.value, got.low, got.high) == pytest.approx((yes / n, wanted.low, wanted.high), abs=1e-12)


def test_interval_of_no_values_raises():
    for measure in (bootstrap, proportion):
        with pytest.raises(DaguerreError, match="N of 1 or more"):
            measure(torch.zeros(0))


def test_interval_formatting():
    assert str(proportion(torch.ones(20))) == "1.000 [0.839, 1.000]"
