"""Noise per image: sampled on the CPU from the image's own generator, so it depends neither on the batch nor on the device."""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoiseSampler = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, *), σ, σ_next -> standard normal (B, *)

MIN_SIGMA = 1e-4  # the range of Brownian paths; samplers add no noise in the step to 0
MAX_SIGMA = 1e4
TREE_DEPTH = 12  # intervals of 0.0045 in ln σ, well below the steps of any run


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def randn_per_image(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (len(generators), *shape), float32 on the CPU; row i depends on generator i only."""
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


def gaussian_noise(generators: Sequence[torch.Generator]) -> NoiseSampler:
    """Independent noise at every call."""
    return lambda x, sigma, sigma_next: randn_per_image(generators, x.shape[1:]).to(x)


def brownian_noise(generators: Sequence[torch.Generator]) -> NoiseSampler:
    """The increments of one Brownian path W per image, over the time τ = ln σ: (W(τ_next) − W(τ))/√|τ_next − τ|.

    A path depends only on its image's generator. So overlapping steps get consistent noise, as SDE samplers assume, and runs with more
    steps follow the same path and converge to the same image (Li et al. 2020, arXiv:2001.01328, section 4).
    """
    seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
    cache: dict[float, Tensor] = {}

    def path(sigma: float, shape: torch.Size) -> Tensor:
        if sigma not in cache:
            cache[sigma] = torch.stack([_path(seed, sigma, shape) for seed in seeds])
        return cache[sigma]

    def increment(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        high, low = (min(max(each.item(), MIN_SIGMA), MAX_SIGMA) for each in (sigma, sigma_next))
        return ((path(low, x.shape[1:]) - path(high, x.shape[1:])) / math.sqrt(abs(math.log(high / low)))).to(x)

    return increment


def _path(seed: int, sigma: float, shape: Sequence[int]) -> Tensor:
    """W at ln σ, float64: bisect the interval, with a Brownian bridge at each midpoint whose noise is seeded by its node in the tree."""
    time = math.log(sigma)
    low, high = math.log(MIN_SIGMA), math.log(MAX_SIGMA)
    at_low = torch.zeros(*shape, dtype=torch.float64)
    at_high = math.sqrt(high - low) * _seeded_noise(shape, seed, "root")
    node = "."
    for _ in range(TREE_DEPTH):
        middle = (low + high) / 2
        at_middle = (at_low + at_high) / 2 + math.sqrt(high - low) / 2 * _seeded_noise(shape, seed, node)
        if time < middle:
            high, at_high, node = middle, at_middle, node + "0"
        else:
            low, at_low, node = middle, at_middle, node + "1"
    fraction = (time - low) / (high - low)
    std = math.sqrt(fraction * (1 - fraction) * (high - low))
    return torch.lerp(at_low, at_high, fraction) + std * _seeded_noise(shape, seed, f"{time:.17g}")


def _seeded_noise(shape: Sequence[int], seed: int, node: str) -> Tensor:
    """Standard normal noise of a node of a path."""
    digest = hashlib.blake2b(f"{seed} {node}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
