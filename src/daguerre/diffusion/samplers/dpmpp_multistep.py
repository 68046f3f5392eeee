"""Multistep samplers in terms of x0 and λ = −ln σ: one evaluation per step, combined with previous outputs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.noise import NoiseSampler
from daguerre.diffusion.samplers.euler_heun import SamplerSteps
from daguerre.diffusion.samplers.exponential_integrator import data_moments, quadrature_weights, weighted_sum

Solver = Literal["midpoint", "heun"]


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    solver: Solver = "midpoint",
    eta: float = 0.0,
    noise: NoiseSampler | None = None,
    lower_order_final: bool = False,
) -> SamplerSteps:
    """DPM-Solver++(2M), second order: x0 is extrapolated linearly from the previous step (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    η = 1 is its SDE form (section 5). "heun" integrates the line through the last two x0 exactly, "midpoint" uses its midpoint.
    A last step to 0 is always of first order; with `lower_order_final` any last step is, in runs of fewer than 15 steps.
    """
    past: list[tuple[Tensor, Tensor]] = []  # (x0, h) of the previous step
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        h, decay = _step_fraction(sigma, sigma_next, eta)
        x = x0 + (x - x0) * (1 - decay)
        if _order(2, past, step, sigmas, lower_order_final) == 2:
            weight = decay / 2 if solver == "midpoint" else 1 - decay / ((1 + eta) * h)
            x = x + weight * (h / past[0][1]) * (x0 - past[0][0])
        x = _add_sde_noise(x, sigma, sigma_next, eta, noise)
        past = [(x0, h)]
        yield x, x0


def dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    solver: Solver = "heun",
    eta: float = 0.0,
    noise: NoiseSampler | None = None,
    lower_order_final: bool = False,
    exact: bool = False,
) -> SamplerSteps:
    """DPM-Solver++(3M): x0 is extrapolated with the slope and curvature of the last two steps; η = 1 is its SDE form.

    Existing implementations give the second difference half the weight of the exact integral, which makes the method second order; with
    `exact` it has the full weight and the method is third order. `solver` applies to steps of order 2.
    """
    past: list[tuple[Tensor, Tensor]] = []  # (x0, h), the newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        h, decay = _step_fraction(sigma, sigma_next, eta)
        x = x0 + (x - x0) * (1 - decay)
        order = _order(3, past, step, sigmas, lower_order_final)
        first = 1 - decay / ((1 + eta) * h)  # ∫ of u, and `second` of u², as in exponential_integrator.py
        slopes = [(a - b) * (h / h_b) for (a, _), (b, h_b) in pairwise([(x0, h), *past])] if order > 1 else []
        if order == 2:
            x = x + (decay / 2 if solver == "midpoint" else first) * slopes[0]
        if order == 3:
            second = (1 - 2 * first / ((1 + eta) * h)) * (1 if exact else 0.5)
            curvature = (slopes[0] - slopes[1]) * (h / (past[0][1] + past[1][1]))
            x = x + first * (slopes[0] + curvature * (past[0][1] / h)) + second * curvature
        x = _add_sde_noise(x, sigma, sigma_next, eta, noise)
        past = [(x0, h), *past[:1]]
        yield x, x0


def _step_fraction(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """h of a step (inf in a step to 0), and the fraction of x that the step replaces by x0."""
    h = (sigma / sigma_next).log()
    return h, -torch.expm1(-(1 + eta) * h)


def _add_sde_noise(x: Tensor, sigma: Tensor, sigma_next: Tensor, eta: float, noise: NoiseSampler | None) -> Tensor:
    """x plus the noise of an SDE step, with variance σ_next²·(1 − e^(−2ηh))."""
    if noise is None or eta == 0 or sigma_next == 0:
        return x
    return x + sigma_next * (-torch.expm1(2 * eta * (sigma_next / sigma).log())).sqrt() * noise(x, sigma, sigma_next)


def _order(order: int, past: Sequence[object], step: int, sigmas: Tensor, lower_order_final: bool) -> int:
    """The order of a step: limited by the history, 1 in a step to σ = 0, and lower at the end of a short run."""
    left = len(sigmas) - 1 - step
    if (lower_order_final and len(sigmas) <= 15) or sigmas[step + 1] == 0:
        order = min(order, left)
    return min(order, len(past) + 1)


def unipc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2, variant: Literal["bh1", "bh2"] = "bh2", lower_order_final: bool = True
) -> SamplerSteps:
    """UniPC: a predictor step, corrected with the x0 at its end, which the next step needs anyway (Zhao et al. 2023, arXiv:2302.04867, in
    terms of x0). The order with the corrector is `order` + 1."""
    lambdas = -sigmas.log()
    x0s: list[Tensor] = []  # the newest first
    start, used = x, 0  # x at the start of the previous step, and how many x0 it used
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if step > 0:
            nodes = [lambdas[step - 1 - i] for i in range(used)]
            x = _unipc_step(start, lambdas[step], [nodes[0], lambdas[step], *nodes[1:]], [x0s[0], x0, *x0s[1:used]], variant)
        x0s = [x0, *x0s[: order - 1]]
        used = min(len(x0s), len(sigmas) - 1 - step if lower_order_final else order)
        start = x
        if sigma_next > 0:
            x = _unipc_step(start, lambdas[step + 1], [lambdas[step - i] for i in range(used)], x0s[:used], variant)
        else:
            x = x0
        yield x, x0


def _unipc_step(x: Tensor, target: Tensor, lambdas: list[Tensor], x0s: list[Tensor], variant: str) -> Tensor:
    """x at λ = target from x at λ = lambdas[0] and the x0 at all lambdas; two of them have the weight B(h)/2 of the variant."""
    h = target - lambdas[0]
    nodes = [(each - lambdas[0]) / h for each in lambdas]
    moments = data_moments(h, len(nodes))
    if len(nodes) == 2:
        half = (h if variant == "bh1" else moments[0]) / (2 * nodes[1])
        coefficients = torch.stack([moments[0] - half, half])
    else:
        coefficients = quadrature_weights(nodes, moments)
    return torch.exp(-h) * x + weighted_sum(coefficients, x0s)
