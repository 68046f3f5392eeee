"""Noise that belongs to a picture: drawn on the CPU from the picture's own generator, so neither batch nor device changes it."""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoiseSampler = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, *), σ, σ_next -> standard normal (B, *)

MIN_SIGMA = 1e-4  # where Brownian time ends; samplers draw no noise on the step to 0
MAX_SIGMA = 1e4
TREE_DEPTH = 12  # cells of 0.0045 in ln σ, well below the steps of any grid


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator on the CPU for each picture."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def randn_per_image(sources: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (len(sources), *shape), float32 on the CPU: row i depends on source i alone."""
    return torch.stack([torch.randn(*shape, generator=source) for source in sources])


def gaussian_noise(sources: Sequence[torch.Generator]) -> NoiseSampler:
    """Fresh noise at each call, whatever the step."""
    return lambda x, sigma, sigma_next: randn_per_image(sources, x.shape[1:]).to(x)


def brownian_noise(sources: Sequence[torch.Generator]) -> NoiseSampler:
    """The increments of one Brownian path W for each picture, in the time τ = ln σ: (W(τ_next) − W(τ))/√|τ_next − τ|.

    A path is a function of its picture's generator alone. So steps that overlap draw noise that agrees, as the SDE samplers suppose, and a
    finer grid follows the same path: more steps give the same picture, better (Li et al. 2020, arXiv:2001.01328, section 4).
    """
    seeds = [int(torch.randint(2**62, (), generator=source)) for source in sources]
    known: dict[float, Tensor] = {}

    def path(sigma: float, shape: torch.Size) -> Tensor:
        if sigma not in known:
            known[sigma] = torch.stack([_path(seed, sigma, shape) for seed in seeds])
        return known[sigma]

    def increment(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        high, low = (min(max(each.item(), MIN_SIGMA), MAX_SIGMA) for each in (sigma, sigma_next))
        return ((path(low, x.shape[1:]) - path(high, x.shape[1:])) / math.sqrt(abs(math.log(high / low)))).to(x)

    return increment


def _path(seed: int, sigma: float, shape: Sequence[int]) -> Tensor:
    """W at ln σ: down a tree of intervals, each halved by a Brownian bridge whose noise is seeded by its place in the tree. float64."""
    at = math.log(sigma)
    low, high = math.log(MIN_SIGMA), math.log(MAX_SIGMA)
    at_low = torch.zeros(*shape, dtype=torch.float64)
    at_high = math.sqrt(high - low) * _seeded(shape, seed, "root")
    place = "."
    for _ in range(TREE_DEPTH):
        middle = (low + high) / 2
        at_middle = (at_low + at_high) / 2 + math.sqrt(high - low) / 2 * _seeded(shape, seed, place)
        if at < middle:
            high, at_high, place = middle, at_middle, place + "0"
        else:
            low, at_low, place = middle, at_middle, place + "1"
    share = (at - low) / (high - low)
    spread = math.sqrt(share * (1 - share) * (high - low))
    return torch.lerp(at_low, at_high, share) + spread * _seeded(shape, seed, f"{at:.17g}")


def _seeded(shape: Sequence[int], seed: int, place: str) -> Tensor:
    """Standard normal noise of a place in a path."""
    digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest()
    source = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(*shape, generator=source, dtype=torch.float64)
