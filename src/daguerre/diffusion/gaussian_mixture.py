"""Pictures whose denoiser is known exactly, to measure samplers with: a mixture of round Gaussians, x0 ~ Σ w_k·N(μ_k, s_k²).

After noising, component k is N(μ_k, s_k² + σ²), so E[x0 | x] = Σ r_k(x)·(s_k²·x + σ²·μ_k)/(s_k² + σ²) with the posterior weights r_k.
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
        away = x[:, None] - self.means  # (B, K, D)
        logits = self.weights.log() - x.shape[1] / 2 * variances.log() - away.square().sum(-1) / (2 * variances)  # (B, K)
        means = x[:, None] - (sigma**2 / variances)[:, None] * away  # (B, K, D)
        return torch.einsum("bk,bkd->bd", logits.softmax(-1), means)

    def trajectory(self, x: Tensor, sigmas: Tensor, substeps: int = 16) -> Tensor:
        """The solution of the probability-flow ODE from x (B, D) at every σ > 0 of a descending grid, (N, B, D): Runge–Kutta in ln σ."""

        def slope(x: Tensor, at: Tensor) -> Tensor:
            return x - self.denoise(x, at.exp())  # dx/d(ln σ)

        along = [x]
        for high, low in pairwise(sigmas[sigmas > 0].log()):
            h = (low - high) / substeps
            for at in high + h * torch.arange(substeps):
                first = slope(x, at)
                second = slope(x + h / 2 * first, at + h / 2)
                third = slope(x + h / 2 * second, at + h / 2)
                x = x + h / 6 * (first + 2 * second + 2 * third + slope(x + h * third, at + h))
            along.append(x)
        return torch.stack(along)

    def network(self, schedule: Schedule, prediction: Prediction) -> NetworkFn:
        """The denoiser turned into the network that a perfect training would give: F = (D − c_skip·x)/c_out of (x/√(σ²+1), t)."""

        def network(x_in: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            at_end = schedule.config.zero_terminal_snr and bool(t[0] == len(schedule) - 1)
            sigma = torch.tensor(float("inf"), dtype=torch.float64) if at_end else schedule.t_to_sigma(t[0])
            c_skip, c_out = coefficients(prediction, sigma)
            x = x_in.to(torch.float64) if at_end else x_in.to(torch.float64) * (sigma**2 + 1).sqrt()
            return ((self.denoise(x, sigma) - c_skip * x) / c_out).to(x_in.dtype)

        return network


def two_gaussians() -> GaussianMixture:
    """Two components in the plane, unlike in weight, place and width."""
    return GaussianMixture(*(torch.tensor(values, dtype=torch.float64) for values in ([0.3, 0.7], [[-1.0, 0.5], [0.8, -0.4]], [0.3, 0.5])))
