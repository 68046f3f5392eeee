"""Linear multistep samplers in terms of ε = (x − D(x; σ))/σ, the slope dx/dσ: one evaluation a step.

Adams and Bashforth's weights suppose even steps. PLMS, PNDM and iPNDM use them on any grid; they are of order 4 only where it is even in σ,
and of order 2 on other smooth grids. LMS and DEIS integrate the polynomial through the last slopes on the grid as it is, LMS in σ and
DEIS in ln σ.
"""

from itertools import pairwise

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise, Prediction
from daguerre.diffusion.samplers.euler_heun import SamplerSteps
from daguerre.diffusion.samplers.exponential_integrator import noise_moments, quadrature_weights, weighted_sum

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # the newest first


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 4) -> SamplerSteps:
    """The polynomial in σ through up to `order` slopes; begins with Euler, so second order overall (Katherine Crowson, k-diffusion)."""
    slopes: list[Tensor] = []  # the newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        nodes = [(sigmas[step - i] - sigma) / (sigma_next - sigma) for i in range(len(slopes))]
        even = [1 / torch.tensor(k + 1.0, dtype=sigmas.dtype) for k in range(len(slopes))]  # ∫₀¹ u^k du
        x = x + (sigma_next - sigma) * weighted_sum(quadrature_weights(nodes, even), slopes)
        yield x, x0


def deis(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 3, lower_order_final: bool = False) -> SamplerSteps:
    """The polynomial in ln σ through up to `order` slopes (Zhang & Chen 2023, arXiv:2204.13902, tAB-DEIS with log ρ).
    A last step to 0 is of first order; with `lower_order_final` the last two are of order 2 and 1, in runs of fewer than 15 steps."""
    lambdas = -sigmas.log()
    slopes: list[Tensor] = []  # the newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        few = (lower_order_final and len(sigmas) <= 15) or sigma_next == 0
        used = min(len(slopes), len(sigmas) - 1 - step if few else order)
        if used == 1:
            x = x0 + sigma_next * slopes[0]
        else:
            h = lambdas[step + 1] - lambdas[step]
            nodes = [(lambdas[step - i] - lambdas[step]) / h for i in range(used)]
            x = x - sigma * weighted_sum(quadrature_weights(nodes, noise_moments(h, used)), slopes[:used])
        yield x, x0


def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 4) -> SamplerSteps:
    """Adams–Bashforth that begins at order 1 and gains one a step (Zhang & Chen 2023, arXiv:2204.13902, appendix, iPNDM)."""
    slopes: list[Tensor] = []  # the newest first
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        x = x + (sigma_next - sigma) * weighted_sum(ADAMS_BASHFORTH[len(slopes) - 1], slopes)
        yield x, x0


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, *, mix: Prediction = "epsilon") -> SamplerSteps:
    """Adams–Bashforth whose first step is Heun's, so it evaluates the second σ twice (Liu et al. 2022, arXiv:2202.09778, eq. 12, with the
    start of Rombach et al.'s latent diffusion). Known also as PNDM without its Runge–Kutta steps.

    mix: what the weights combine; "v" is what diffusers combines for networks that predict v.
    """
    past: list[Tensor] = []  # the newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        past = [_to_mix_space(x, x0, sigma, mix), *past[:3]]
        average = weighted_sum(ADAMS_BASHFORTH[len(past) - 1], past)
        if step == 0:
            ahead = x + (sigma_next - sigma) * _slope(average, x, sigma, mix)
            average = (average + _to_mix_space(ahead, denoise(ahead, sigma_next), sigma_next, mix)) / 2
        x = x + (sigma_next - sigma) * _slope(average, x, sigma, mix)
        yield x, x0


def pndm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, midpoints: Tensor | None = None, mix: Prediction = "epsilon") -> SamplerSteps:
    """Three Runge–Kutta steps of four evaluations, then Adams–Bashforth of order 4 (Liu et al. 2022, arXiv:2202.09778, algorithm 2).

    midpoints: (N,) the σ inside each step, from `spacing.midpoints`; half-way in σ if it is not given.
    """
    midpoints = (sigmas[1:] + sigmas[:-1]) / 2 if midpoints is None else midpoints
    past: list[Tensor] = []  # the newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        past = [_to_mix_space(x, x0, sigma, mix), *past[:3]]
        if step >= 3:
            average = weighted_sum(ADAMS_BASHFORTH[3], past)
        else:
            asked = [past[0]]
            for at in (midpoints[step], midpoints[step], sigma_next):
                ahead = x + (at - sigma) * _slope(asked[-1], x, sigma, mix)
                asked.append(_to_mix_space(ahead, denoise(ahead, at), at, mix))
            average = weighted_sum((1 / 6, 1 / 3, 1 / 3, 1 / 6), asked)
        x = x + (sigma_next - sigma) * _slope(average, x, sigma, mix)
        yield x, x0


def _to_mix_space(x: Tensor, x0: Tensor, sigma: Tensor, mix: Prediction) -> Tensor:
    """The answer of the network as the quantity to combine: ε, or v = (ε − σ·x0)/√(σ²+1)."""
    slope = (x - x0) / sigma
    return slope if mix == "epsilon" else (slope - sigma * x0) / (sigma**2 + 1).sqrt()


def _slope(mixed: Tensor, x: Tensor, sigma: Tensor, mix: Prediction) -> Tensor:
    """ε again, for x at σ."""
    return mixed if mix == "epsilon" else mixed / (sigma**2 + 1).sqrt() + (sigma / (sigma**2 + 1)) * x
