"""A data distribution with an exact denoiser, to test samplers: a mixture of isotropic Gaussians, x0 ~ Σ w_k·N(μ_k, s_k²).

With noise, component k is N(μ_k, s_k² + σ²), so E[x0 | x] = Σ r_k(x)·(s_k²·x + σ²·μ_k)/(s_k² + σ²) with the posterior weights r_k.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import NetworkFn, Prediction, coefficients
from daguerre.diffusion.schedule import Schedule


@dataclass(frozen=True)
class GaussianMixture:
    """weights (K,) sum to 1; means (K, D); stds (K,). All float64."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] for x (B, D) = x0 + σ·ε; at σ = inf the mean of the mixture."""
        if sigma.isinf():
            return (self.weights @ self.means).expand_as(x)
        variances = self.stds**2 + sigma**2  # (K,)
        offset = x[:, None] - self.means  # (B, K, D)
        logits = self.weights.log() - x.shape[1] / 2 * variances.log() - offset.square().sum(-1) / (2 * variances)  # (B, K)
        means = x[:, None] - (sigma**2 / variances)[:, None] * offset  # (B, K, D)
        return torch.einsum("bk,bkd->bd", logits.softmax(-1), means)

    def trajectory(self, x: Tensor, sigmas: Tensor, substeps: int = 16) -> Tensor:
        """The solution of the probability-flow ODE from x (B, D), at every σ > 0 of descending noise levels: (N, B, D). Uses Runge–Kutta of
        order 4 in ln σ, with `substeps` steps between two noise levels."""

        def slope(x: Tensor, log_sigma: Tensor) -> Tensor:
            return x - self.denoise(x, log_sigma.exp())  # dx/d(ln σ)

        points = [x]
        for high, low in pairwise(sigmas[sigmas > 0].log()):
            h = (low - high) / substeps
            for at in high + h * torch.arange(substeps):
                first = slope(x, at)
                second = slope(x + h / 2 * first, at + h / 2)
                third = slope(x + h / 2 * second, at + h / 2)
                x = x + h / 6 * (first + 2 * second + 2 * third + slope(x + h * third, at + h))
            points.append(x)
        return torch.stack(points)

    def network(self, schedule: Schedule, prediction: Prediction) -> NetworkFn:
        """The network that perfect training would give: F(x/√(σ²+1), t) = (D − c_skip·x)/c_out."""

        def network(x_in: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            at_end = schedule.config.zero_terminal_snr and bool(t[0] == len(schedule) - 1)
            sigma = torch.tensor(float("inf"), dtype=torch.float64) if at_end else schedule.t_to_sigma(t[0])
            c_skip, c_out = coefficients(prediction, sigma)
            x = x_in.to(torch.float64) if at_end else x_in.to(torch.float64) * (sigma**2 + 1).sqrt()
            return ((self.denoise(x, sigma) - c_skip * x) / c_out).to(x_in.dtype)

        return network


def two_gaussians() -> GaussianMixture:
    """Two components in the plane with different weights, means and widths."""
    return GaussianMixture(*(torch.tensor(values, dtype=torch.float64) for values in ([0.3, 0.7], [[-1.0, 0.5], [0.8, -0.4]], [0.3, 0.5])))
