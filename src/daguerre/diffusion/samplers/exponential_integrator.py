"""Exponential integrators: interpolate previous outputs of the denoiser with a polynomial, and integrate it exactly.

With λ = −ln σ, h = λ_next − λ and u = (λ' − λ)/h running from 0 to 1 over a step,

    x_next = e^(−h)·x + ∫₀¹ h·e^(−h(1−u))·D(u) du          in terms of D  (Lu et al. 2022, arXiv:2211.01095, eq. 8)
    x_next = x − σ·∫₀¹ h·e^(−hu)·ε(u) du                   in terms of ε = (x − D)/σ  (Lu et al. 2022, arXiv:2206.00927, eq. 3.4)
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def data_moments(h: Tensor, count: int) -> list[Tensor]:
    """∫₀¹ u^k·h·e^(−h(1−u)) du for k = 0 … count − 1; by partial integration."""
    moments = [-torch.expm1(-h)]
    for k in range(1, count):
        moments.append(1 - k * moments[-1] / h)
    return moments


def noise_moments(h: Tensor, count: int) -> list[Tensor]:
    """∫₀¹ u^k·h·e^(−hu) du for k = 0 … count − 1."""
    moments = [-torch.expm1(-h)]
    for k in range(1, count):
        moments.append(k * moments[-1] / h - torch.exp(-h))
    return moments


def quadrature_weights(nodes: Sequence[Tensor], moments: Sequence[Tensor]) -> Tensor:
    """The weights (n,) of n nodes that integrate polynomials below degree n exactly: Σ_j w_j·u_j^k = moment_k."""
    powers = torch.stack([torch.stack(list(nodes)) ** k for k in range(len(nodes))])  # (n, n): row k holds u^k
    return torch.linalg.solve(powers, torch.stack(list(moments[: len(nodes)])))


def weighted_sum(coefficients: Tensor | Sequence[Tensor | float], values: Sequence[Tensor]) -> Tensor:
    """Σ c_i·v_i, each v_i (B, *)."""
    total = coefficients[0] * values[0]
    for coefficient, value in zip(coefficients[1:], values[1:], strict=True):
        total = total + coefficient * value
    return total
