"""How sure a measured number is.

The bootstrap draws the same count again from the measured values, with replacement, and looks how far the statistic moves (Efron 1979;
Efron and Tibshirani 1993, chapter 13, the percentile interval). A share of yes and no has an interval in closed form, which stays honest
where all are yes (Wilson 1927): (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class Interval:
    """A measured value, and the bounds that hold the true one with probability `level`; of `count` measurements."""

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
    """The percentile interval of a statistic of values (N,), drawn `resamples` times. The same seed gives the same interval.

    `statistic` maps resampled values (R, N) to (R,); the mean unless another is given.
    """
    values = _checked(values)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for rows in torch.arange(resamples).split(max(1, 2**22 // len(values))):  # at most 32 MB at once
        index = torch.randint(len(values), (len(rows), len(values)), generator=generator)
        drawn.append(statistic(values[index]))
    low, high = torch.quantile(torch.cat(drawn), values.new_tensor([(1 - level) / 2, (1 + level) / 2])).tolist()
    return Interval(statistic(values[None]).item(), low, high, len(values), level)


def proportion(values: Tensor, *, level: float = 0.95) -> Interval:
    """Wilson's interval of the share of ones in values (N,) of 0 and 1."""
    values = _checked(values)
    n, p = len(values), values.mean().item()
    z = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n, level)


def _checked(values: Tensor) -> Tensor:
    if values.ndim != 1 or not len(values):
        raise DaguerreError(f"An interval needs measured values (N,), at least one; given {tuple(values.shape)}.")
    return values.detach().to("cpu", torch.float64)
