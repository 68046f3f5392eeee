"""Autoregressive priors over code grids: p(c) = Π_i p(c_i | c_<i, condition), in raster order. Sampling, and likelihood in bits.

Top-k: Fan et al. 2018, arXiv:1805.04833; top-p: Holtzman et al. 2020, arXiv:1904.09751.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class Sampling:
    """How to sample a code: apply the temperature, then keep the `top_k` likeliest, then the fewest with total probability `top_p`.

    Temperature 0 is greedy (argmax).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise DaguerreError(
                f"The temperature is {self.temperature}; it must be 0 or more: 1 samples the learned distribution, 0 is greedy."
            )
        if self.top_k is not None and self.top_k < 1:
            raise DaguerreError(f"top_k is {self.top_k}; it must be 1 or more, or None for all codes.")
        if not 0 < self.top_p <= 1:
            raise DaguerreError(f"top_p is {self.top_p}; it must be in (0, 1], where 1 keeps all codes.")


DEFAULT_SAMPLING = Sampling()


class CodePrior(nn.Module):
    """A distribution over grids of codes of any size."""

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, h, w, K) for each position of codes (B, h, w), given the codes before it and the condition."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        grid: tuple[int, int],
        uniforms: Tensor,
        condition: Tensor | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        prefix_rows: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Sample code grids with one evaluation per code, and yield the grids (B, h, w) int64 after each row, 0 where not sampled yet.

        uniforms: (B, h·w) in [0, 1), see `uniform_noise`; the only source of randomness. prefix_rows: given first rows (B, r, w).
        """
        h, w = grid
        codes, first = init_grid(grid, uniforms, prefix_rows)
        for i in range(first, h):
            for j in range(w):
                logits = self(codes, condition)[:, i, j]  # (B, K)
                codes[:, i, j] = sample_codes(probabilities(logits, sampling), uniforms[:, i * w + j])
            yield codes.clone()


def uniform_noise(generators: Sequence[torch.Generator], grid: tuple[int, int]) -> Tensor:
    """Uniform random numbers (B, h·w) float64 for one grid per generator: row i depends only on generator i."""
    return torch.stack([torch.rand(grid[0] * grid[1], generator=generator, dtype=torch.float64) for generator in generators])


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The sampling distribution (B, K) float64 for logits (B, K)."""
    if sampling.temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
    logits = logits.double() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[..., -1:]  # (B, 1)
        logits = logits.masked_fill(logits < threshold, -math.inf)
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # total probability of the likelier codes; 0 for the first
        p = p.scatter(-1, order, ordered.masked_fill(before >= sampling.top_p, 0.0))
    return p / p.sum(dim=-1, keepdim=True)


def sample_codes(p: Tensor, u: Tensor) -> Tensor:
    """Inverse transform sampling: the codes (B,) where the cumulative distribution of p (B, K) exceeds u (B,) in [0, 1)."""
    cumulative = p.cumsum(dim=-1)
    target = (u.to(p)[:, None] * cumulative[:, -1:]).contiguous()
    codes = torch.searchsorted(cumulative, target, right=True)[:, 0]  # (B,); right=True skips codes of probability 0
    last = (p > 0).long().cumsum(dim=-1).argmax(dim=-1)  # rounding must not select a code of probability 0
    return torch.minimum(codes, last)


def bits_per_code(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean −log₂ p per code of each grid: (B,). logits (B, h, w, K), codes (B, h, w)."""
    nats = F.cross_entropy(logits.flatten(0, 2).float(), codes.flatten(), reduction="none")
    return nats.unflatten(0, codes.shape).mean(dim=(1, 2)) / math.log(2)


def bits_per_pixel(bits: Tensor, downsample_factor: int) -> Tensor:
    """Convert bits per code to bits per image pixel (not per channel)."""
    return bits / downsample_factor**2


def init_grid(grid: tuple[int, int], uniforms: Tensor, prefix_rows: Tensor | None) -> tuple[Tensor, int]:
    """A grid (B, h, w) of zeros that starts with the prefix rows, and the index of the first row to sample.

    Raises:
        DaguerreError: the prefix rows or the random numbers do not fit the grid.
    """
    h, w = grid
    B = len(uniforms)
    if uniforms.shape != (B, h * w):
        raise DaguerreError(f"A grid of {h}×{w} codes needs {h * w} random numbers per image, but uniforms is {tuple(uniforms.shape)}.")
    codes = torch.zeros(B, h, w, dtype=torch.long, device=uniforms.device)
    if prefix_rows is None:
        return codes, 0
    if prefix_rows.shape[0] != B or prefix_rows.shape[2] != w or prefix_rows.shape[1] > h:
        raise DaguerreError(f"prefix_rows is {tuple(prefix_rows.shape)}; for {B} grids of {h}×{w} it must be ({B}, at most {h}, {w}).")
    codes[:, : prefix_rows.shape[1]] = prefix_rows
    return codes, prefix_rows.shape[1]
