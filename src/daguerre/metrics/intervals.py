"""Confidence intervals.

The bootstrap resamples the values with replacement and takes percentiles of the statistic (Efron 1979; Efron and Tibshirani 1993,
chapter 13). The Wilson interval of a proportion has a closed form and stays valid for proportions of 0 and 1 (Wilson 1927):
(p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class Interval:
    """A value measured `count` times, with a confidence interval of probability `level`."""

    value: float
    low: float
    high: float
    count: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _mean(resampled: Tensor) -> Tensor:
    return resampled.mean(1)


def bootstrap(
    values: Tensor, statistic: Callable[[Tensor], Tensor] = _mean, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of a statistic of values (N,), deterministic for a seed.

    `statistic` maps resampled values (R, N) to (R,); the default is the mean.
    """
    values = _check_values(values)
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for rows in torch.arange(resamples).split(max(1, 2**22 // len(values))):  # at most 32 MB at once
        index = torch.randint(len(values), (len(rows), len(values)), generator=generator)
        samples.append(statistic(values[index]))
    low, high = torch.quantile(torch.cat(samples), values.new_tensor([(1 - level) / 2, (1 + level) / 2])).tolist()
    return Interval(statistic(values[None]).item(), low, high, len(values), level)


def proportion(values: Tensor, *, level: float = 0.95) -> Interval:
    """The Wilson interval of the proportion of ones in values (N,) of 0 and 1."""
    values = _check_values(values)
    n, p = len(values), values.mean().item()
    z = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n, level)


def _check_values(values: Tensor) -> Tensor:
    if values.ndim != 1 or not len(values):
        raise DaguerreError(f"An interval needs values (N,) with N of 1 or more; got {tuple(values.shape)}.")
    return values.detach().to("cpu", torch.float64)
