"""Samplers for consistency models, whose D is the end of the ODE trajectory and not the mean of x0."""

from itertools import pairwise

from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.noise import NoiseSampler
from daguerre.diffusion.samplers.euler_heun import SamplerSteps


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: NoiseSampler) -> SamplerSteps:
    """Denoise to σ = 0, then add new noise (Luo et al. 2023, arXiv:2310.04378, after Song et al. 2023, arXiv:2303.01469, algorithm 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        x = x0 = denoise(x, sigma)
        if sigma_next > 0:
            x = x0 + sigma_next * noise(x, sigma, sigma_next)
        yield x, x0


def tcd(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: NoiseSampler | None = None, gamma: float = 0.3, targets: Tensor | None = None
) -> SamplerSteps:
    """Denoise along the trajectory to below the next σ, then add noise up to it (Zheng et al. 2024, arXiv:2402.19159, strategic stochastic
    sampling).

    gamma: 0 adds no noise (Euler), 1 is `lcm`.
    targets: (N,) the σ that each step denoises to, from `tcd_targets`; by default (1 − γ)·σ_next.
    """
    targets = (1 - gamma) * sigmas[1:] if targets is None else targets
    for (sigma, sigma_next), target in zip(pairwise(sigmas), targets, strict=True):
        x0 = denoise(x, sigma)
        x = x0 + (x - x0) * (target / sigma)
        if noise is not None and sigma_next > target:
            x = x + (sigma_next**2 - target**2).sqrt() * noise(x, sigma, sigma_next)
        yield x, x0
