"""Single-step DPM-Solver: blocks of two or three steps that start with first order and gain one order per step.

Every step is one evaluation; a block of k steps has order k. If the steps of each block are even in ln σ, a block is one step of the
papers' single-step method (Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2; arXiv:2211.01095, algorithm 1).
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.samplers.euler_heun import SamplerSteps
from daguerre.diffusion.samplers.exponential_integrator import data_moments, noise_moments, weighted_sum


def dpm_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    order: int = 2,
    prediction: Literal["epsilon", "x0"] = "epsilon",
    solver: Literal["midpoint", "heun"] = "midpoint",
) -> SamplerSteps:
    """DPM-Solver-2 and -3 in terms of ε, DPM-Solver++(2S) and (3S) in terms of x0. A last step to 0 is of first order."""
    outputs: list[Tensor] = []  # of this block, the oldest first
    begin, start = 0, x  # the first step of this block, and x there
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if step % order == 0 or sigma_next == 0:
            outputs, begin, start = [], step, x
        outputs.append(x0 if prediction == "x0" else (x - x0) / sigma)
        x = x0 if sigma_next == 0 else _step(start, outputs, sigmas[begin : step + 2], prediction, solver)
        yield x, x0


def _step(x: Tensor, outputs: list[Tensor], sigmas: Tensor, prediction: str, solver: str) -> Tensor:
    """x at the last of the sigmas, from x at the first and the outputs at all but the last."""
    lambdas = -sigmas.log()
    h = lambdas[-1] - lambdas[0]
    moments = (data_moments if prediction == "x0" else noise_moments)(h, 3)
    slopes = [(output - outputs[0]) / ((at - lambdas[0]) / h) for output, at in zip(outputs[1:], lambdas[1:-1], strict=True)]
    terms, values = [moments[0]], [outputs[0]]
    if len(slopes) == 2 and solver == "heun":
        near, far = ((lambdas[1:3] - lambdas[0]) / h).unbind()
        curvature = (slopes[1] - slopes[0]) / (far - near)
        terms, values = [*terms, moments[1], moments[2]], [*values, slopes[0] - near * curvature, curvature]
    elif slopes:
        middle = moments[0] / 2 if len(slopes) == 1 and solver == "midpoint" else moments[1]
        terms, values = [*terms, middle], [*values, slopes[-1]]
    total = weighted_sum(terms, values)
    return (-h).exp() * x + total if prediction == "x0" else x - sigmas[0] * total
