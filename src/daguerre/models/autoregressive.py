"""What all models of code grids share: p(c) = Π_i p(c_i | c_<i, condition), in raster order; its exact length in bits, and drawing from it.

Top-k: Fan et al. 2018, arXiv:1805.04833; top-p: Holtzman et al. 2020, arXiv:1904.09751.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class Sampling:
    """How a code is drawn from its distribution: temperature first, then the k likeliest, then the fewest that hold p of the rest.

    A temperature of 0 takes the likeliest code.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise DaguerreError(f"The temperature is {self.temperature}; it must be 0 or more: 1 draws as trained, less is tamer.")
        if self.top_k is not None and self.top_k < 1:
            raise DaguerreError(f"top_k is {self.top_k}; it must be 1 or more, or None for all codes.")
        if not 0 < self.top_p <= 1:
            raise DaguerreError(f"top_p is {self.top_p}; it must be in (0, 1], where 1 keeps all codes.")


AS_TRAINED = Sampling()


class CodePrior(Protocol):
    """A distribution over grids of codes."""

    def __call__(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, h, w, K) of every code of codes (B, h, w), given the codes before it and the condition."""
        ...

    def sample(
        self,
        grid: tuple[int, int],
        uniforms: Tensor,
        condition: Tensor | None = None,
        sampling: Sampling = AS_TRAINED,
        prefix_rows: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Draw code grids, and yield them as they are after each row: (B, h, w) int64, zero where nothing is drawn yet.

        uniforms: (B, h·w) in [0, 1), as from `uniforms`; they alone decide. known: the first rows (B, r, w), where they are given.
        """
        ...


def uniform_noise(sources: Sequence[torch.Generator], grid: tuple[int, int]) -> Tensor:
    """The randomness of one grid for each generator, (B, h·w) float64: row i depends on source i alone."""
    return torch.stack([torch.rand(grid[0] * grid[1], generator=source, dtype=torch.float64) for source in sources])


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (B, K) float64 that codes are drawn from, of logits (B, K)."""
    if sampling.temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
    logits = logits.double() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -math.inf)
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # what likelier codes hold together; 0 for the first
        p = p.scatter(-1, order, ordered.masked_fill(before >= sampling.top_p, 0.0))
    return p / p.sum(dim=-1, keepdim=True)


def sample_codes(p: Tensor, u: Tensor) -> Tensor:
    """The codes (B,) at which the cumulative distribution of p (B, K) passes u (B,) in [0, 1)."""
    reached = p.cumsum(dim=-1)
    below = (u.to(p)[:, None] * reached[:, -1:]).contiguous()
    codes = torch.searchsorted(reached, below, right=True)[:, 0]  # (B,); right: codes of probability 0 are passed over
    last = (p > 0).long().cumsum(dim=-1).argmax(dim=-1)  # rounding must not end beyond the last possible code
    return torch.minimum(codes, last)


def bits_per_code(logits: Tensor, codes: Tensor) -> Tensor:
    """−log₂ p of each grid over its number of codes: (B,). logits (B, h, w, K), codes (B, h, w)."""
    nats = F.cross_entropy(logits.flatten(0, 2).float(), codes.flatten(), reduction="none")
    return nats.unflatten(0, codes.shape).mean(dim=(1, 2)) / math.log(2)


def bits_per_pixel(bits: Tensor, downsampling: int) -> Tensor:
    """Bits per code as bits per pixel of the picture that the codes stand for (not per channel)."""
    return bits / downsampling**2


def init_grid(grid: tuple[int, int], uniforms: Tensor, prefix_rows: Tensor | None) -> tuple[Tensor, int]:
    """An empty grid (B, h, w) with its known rows in place, and the number of the first row to be drawn.

    Raises:
        DaguerreError: the known rows or the randomness do not fit the grid.
    """
    h, w = grid
    B = len(uniforms)
    if uniforms.shape != (B, h * w):
        raise DaguerreError(f"A grid of {h}×{w} codes needs {h * w} random numbers for each picture; {uniforms.shape[1]} were given.")
    codes = torch.zeros(B, h, w, dtype=torch.long, device=uniforms.device)
    if prefix_rows is None:
        return codes, 0
    if prefix_rows.shape[0] != B or prefix_rows.shape[2] != w or prefix_rows.shape[1] > h:
        raise DaguerreError(
            f"The known rows are {tuple(prefix_rows.shape)}; for {B} grids of {h}×{w} they must be ({B}, at most {h}, {w})."
        )
    codes[:, : prefix_rows.shape[1]] = prefix_rows
    return codes, prefix_rows.shape[1]


@torch.no_grad()
def sample_raster(
    prior: CodePrior, grid: tuple[int, int], uniforms: Tensor, condition: Tensor | None, sampling: Sampling, prefix_rows: Tensor | None
) -> Iterator[Tensor]:
    """`CodePrior.sample` for priors that read a whole grid at once: one evaluation for each code."""
    h, w = grid
    codes, first = init_grid(grid, uniforms, prefix_rows)
    for i in range(first, h):
        for j in range(w):
            logits = prior(codes, condition)[:, i, j]  # (B, K)
            codes[:, i, j] = sample_codes(probabilities(logits, sampling), uniforms[:, i * w + j])
        yield codes.clone()
