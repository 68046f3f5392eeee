"""Linear multistep samplers in terms of ε = (x − D(x; σ))/σ, the slope dx/dσ: one evaluation per step.

The Adams–Bashforth weights assume even steps. PLMS, PNDM and iPNDM use them with any noise levels, so they have order 4 only if these are
even in σ, and order 2 otherwise. LMS and DEIS integrate the polynomial through the last slopes at the actual noise levels, LMS in σ and
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
    """The polynomial in σ through up to `order` slopes; starts with Euler, so it has order 2 overall (Katherine Crowson, k-diffusion)."""
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
        reduce = (lower_order_final and len(sigmas) <= 15) or sigma_next == 0
        used = min(len(slopes), len(sigmas) - 1 - step if reduce else order)
        if used == 1:
            x = x0 + sigma_next * slopes[0]
        else:
            h = lambdas[step + 1] - lambdas[step]
            nodes = [(lambdas[step - i] - lambdas[step]) / h for i in range(used)]
            x = x - sigma * weighted_sum(quadrature_weights(nodes, noise_moments(h, used)), slopes[:used])
        yield x, x0


def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 4) -> SamplerSteps:
    """Adams–Bashforth that starts with order 1 and gains one order per step (Zhang & Chen 2023, arXiv:2204.13902, appendix, iPNDM)."""
    slopes: list[Tensor] = []  # the newest first
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        x = x + (sigma_next - sigma) * weighted_sum(ADAMS_BASHFORTH[len(slopes) - 1], slopes)
        yield x, x0


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, *, mix: Prediction = "epsilon") -> SamplerSteps:
    """Adams–Bashforth with a Heun step as the first, which evaluates the second σ twice (Liu et al. 2022, arXiv:2202.09778, eq. 12, with
    the first step of CompVis' latent diffusion). The same as PNDM without its Runge–Kutta steps.

    mix: the quantity that the weights combine; diffusers combines "v" for networks with v prediction.
    """
    past: list[Tensor] = []  # the newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        past = [_to_mix_space(x, x0, sigma, mix), *past[:3]]
        average = weighted_sum(ADAMS_BASHFORTH[len(past) - 1], past)
        if step == 0:
            x_next = x + (sigma_next - sigma) * _slope(average, x, sigma, mix)
            average = (average + _to_mix_space(x_next, denoise(x_next, sigma_next), sigma_next, mix)) / 2
        x = x + (sigma_next - sigma) * _slope(average, x, sigma, mix)
        yield x, x0


def pndm(denoise: Denoise, x: Tensor, sigmas: Tensor, *, midpoints: Tensor | None = None, mix: Prediction = "epsilon") -> SamplerSteps:
    """Three Runge–Kutta steps of four evaluations, then Adams–Bashforth of order 4 (Liu et al. 2022, arXiv:2202.09778, algorithm 2).

    midpoints: (N,) the inner σ of each step, from `spacing.midpoints`; half-way in σ by default.
    """
    midpoints = (sigmas[1:] + sigmas[:-1]) / 2 if midpoints is None else midpoints
    past: list[Tensor] = []  # the newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        past = [_to_mix_space(x, x0, sigma, mix), *past[:3]]
        if step >= 3:
            average = weighted_sum(ADAMS_BASHFORTH[3], past)
        else:
            stages = [past[0]]
            for at in (midpoints[step], midpoints[step], sigma_next):
                x_at = x + (at - sigma) * _slope(stages[-1], x, sigma, mix)
                stages.append(_to_mix_space(x_at, denoise(x_at, at), at, mix))
            average = weighted_sum((1 / 6, 1 / 3, 1 / 3, 1 / 6), stages)
        x = x + (sigma_next - sigma) * _slope(average, x, sigma, mix)
        yield x, x0


def _to_mix_space(x: Tensor, x0: Tensor, sigma: Tensor, mix: Prediction) -> Tensor:
    """The denoiser's output as the quantity to combine: ε, or v = (ε − σ·x0)/√(σ²+1)."""
    slope = (x - x0) / sigma
    return slope if mix == "epsilon" else (slope - sigma * x0) / (sigma**2 + 1).sqrt()


def _slope(mixed: Tensor, x: Tensor, sigma: Tensor, mix: Prediction) -> Tensor:
    """ε of a combined quantity, for x at σ."""
    return mixed if mix == "epsilon" else mixed / (sigma**2 + 1).sqrt() + (sigma / (sigma**2 + 1)) * x
