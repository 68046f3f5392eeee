"""Single-step samplers of the ODE dx/dσ = (x − D(x; σ))/σ, from the first σ to the last (Karras et al. 2022, arXiv:2206.00364, eq. 1, 3).

Ancestral samplers denoise to σ_down below the next σ and add noise of σ_up: σ_down² + σ_up² = σ_next².
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.noise import NoiseSampler
from daguerre.errors import DaguerreError

SamplerSteps = Iterator[tuple[Tensor, Tensor]]  # (x, x0) after every step


def ancestral(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(σ_down, σ_up) of a step; η = 1 adds as much noise as the forward process (Song et al. 2021, arXiv:2010.02502, eq. 16)."""
    up = torch.minimum(eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt(), sigma_next)
    return (sigma_next**2 - up**2).sqrt(), up


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: NoiseSampler | None = None) -> SamplerSteps:
    """First order. η = 0 is Euler, DDIM and DPM-Solver-1; η = 1 is Euler-ancestral and, on the discrete schedule, DDPM with the small
    variance (Song et al. 2021, eq. 12 and 16)."""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        x = x0 + (x - x0) * (down / sigma)
        if noise is not None and up > 0:
            x = x + up * noise(x, sigma, sigma_next)
        yield x, x0


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseSampler,
    variance: Literal["small", "large", "learned"] = "small",
    fraction: Callable[[int], Tensor] | None = None,
) -> SamplerSteps:
    """The posterior of the forward process with variance β̃ (small) or β (large) (Ho et al. 2020, arXiv:2006.11239, section 3.2), or one
    between them that the network learned. fraction: the share of β for the last call of the denoiser (see `LearnedVariance.fraction`).
    """
    if variance == "learned" and fraction is None:
        raise DaguerreError("This model has no learned variance; use the variance 'small' or 'large'.")
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        ratio = (sigma_next / sigma) ** 2
        up = small = sigma_next * (1 - ratio).sqrt()
        if variance != "small":  # β is defined for the variance-preserving x; the factor converts it to x0 + σ·ε
            up = large = ((1 + sigma_next**2) * (sigma**2 - sigma_next**2) / (1 + sigma**2)).sqrt()
            if variance == "learned" and fraction is not None and sigma_next > 0:
                up = small * (large / small) ** fraction(len(x))
        x = x0 + (x - x0) * ratio
        if sigma_next > 0:
            x = x + up * noise(x, sigma, sigma_next)
        yield x, x0


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> SamplerSteps:
    """Second order, two evaluations per step; Euler in a step to σ = 0 (Karras et al. 2022, algorithm 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        if sigma_next > 0:
            x_next = x0 + sigma_next * slope
            slope = (slope + (x_next - denoise(x_next, sigma_next)) / sigma_next) / 2
        x = x + (sigma_next - sigma) * slope
        yield x, x0


def dpm2(denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: NoiseSampler | None = None) -> SamplerSteps:
    """Second order, two evaluations per step, the second half-way in ln σ: DPM-Solver-2 with the integral in σ
    (Karras et al. 2022, algorithm 2 without churn; Lu et al. 2022, arXiv:2206.00927, algorithm 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        down, up = ancestral(sigma, sigma_next, eta)
        if down > 0:
            middle = (sigma * down).sqrt()
            x_middle = x0 + middle * slope
            slope = (x_middle - denoise(x_middle, middle)) / middle
        x = x + (down - sigma) * slope
        if noise is not None and up > 0:
            x = x + up * noise(x, sigma, sigma_next)
        yield x, x0


def dpmpp_2s_a(denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 1.0, noise: NoiseSampler | None = None) -> SamplerSteps:
    """DPM-Solver++(2S) with its midpoint inside the step, then noise as in Euler-ancestral; second order at η = 0
    (Lu et al. 2022, arXiv:2211.01095, algorithm 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = middle_x0 = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        if down > 0:
            middle = (sigma * down).sqrt()
            middle_x0 = denoise(x0 + (x - x0) * (middle / sigma), middle)
        x = middle_x0 + (x - middle_x0) * (down / sigma)
        if noise is not None and up > 0:
            x = x + up * noise(x, sigma, sigma_next)
        yield x, x0


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 1.0, noise: NoiseSampler) -> SamplerSteps:
    """DPM-Solver++(SDE), two evaluations per step. The midpoint gets noise too, so `noise` must be consistent over overlapping intervals,
    as `brownian_noise` is (Lu et al. 2022, arXiv:2211.01095, section 5)."""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = middle_x0 = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        if sigma_next > 0:
            middle = (sigma * sigma_next).sqrt()
            middle_down, middle_up = ancestral(sigma, middle, eta)
            x_middle = x0 + (x - x0) * (middle_down / sigma) + middle_up * noise(x, sigma, middle)
            middle_x0 = denoise(x_middle, middle)
        x = middle_x0 + (x - middle_x0) * (down / sigma)
        if sigma_next > 0:
            x = x + up * noise(x, sigma, sigma_next)
        yield x, x0


def ddim_inversion(denoise: Denoise, x: Tensor, sigmas: Tensor, *, iterations: int = 1) -> SamplerSteps:
    """Euler in reverse, from the last σ up to the first: finds the noise from which `euler` generates this image.

    A step needs the slope at its upper end, where x is not known yet. One iteration uses the x of the lower end (Mokady et al. 2023,
    arXiv:2211.09794); more iterations solve the implicit step by fixed-point iteration (Pan et al. 2023, arXiv:2309.04907).
    """
    for sigma, sigma_above in pairwise(sigmas.flip(0)):
        x0 = x
        above = x * ((1 + sigma_above**2) / (1 + sigma**2)).sqrt()  # scaled so that the network's input stays the same
        for _ in range(iterations):
            x0 = denoise(above, sigma_above)
            above = x + (sigma_above - sigma) * (above - x0) / sigma_above
        x = above
        yield x, x0
