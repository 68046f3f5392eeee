"""The noise schedule of training: x_t = √ᾱ·x0 + √(1−ᾱ)·ε, ᾱ_t = Π(1 − β_s) (Ho et al. 2020, arXiv:2006.11239, eq. 4).

Dividing by √ᾱ gives x0 + σ·ε, the convention of the samplers, with σ = √((1−ᾱ)/ᾱ) and signal-to-noise ratio 1/σ².
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from daguerre.errors import DaguerreError, nearest

# Replaces ᾱ = 0 of the last step where σ must be finite: the smallest positive half-precision number, σ ≈ 4096.
MIN_ALPHA_BAR = 2.0**-24

BETA_KINDS = ("linear", "scaled_linear", "cosine")


@dataclass(frozen=True)
class ScheduleConfig:
    """The configuration of a noise schedule.

    beta_start, beta_end: β of the first and the last of `timesteps` steps; the cosine schedule does not use them.
    kind: "linear" in β (DDPM), "scaled_linear" in √β (latent diffusion), "cosine" in √ᾱ (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17).
    zero_terminal_snr: shift and scale √ᾱ so that the last step is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
    """

    kind: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000
    zero_terminal_snr: bool = False


class Schedule:
    """The noise levels of training.

    Attributes:
        alphas_cumprod: (T,) float64, descending; the last is 0 under zero terminal SNR.
        sigmas: (T,) float64, ascending; the last is inf under zero terminal SNR.
        finite_sigmas: (T,) the same with ᾱ of at least 2⁻²⁴; used by `sigma_to_t`, `t_to_sigma` and the spacings.

    Raises:
        DaguerreError: an unknown kind.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.alphas_cumprod = torch.cumprod(1 - beta_table(config), 0)  # (T,)
        if config.zero_terminal_snr:
            roots = self.alphas_cumprod.sqrt()
            self.alphas_cumprod = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        self.sigmas = _sigmas(self.alphas_cumprod)
        self.finite_sigmas = _sigmas(self.alphas_cumprod.clamp(min=MIN_ALPHA_BAR))
        self._log_sigmas = self.finite_sigmas.log()

    def __len__(self) -> int:
        return self.config.timesteps

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The fractional step of noise level σ, in [0, T − 1]; interpolated in ln σ and clamped at the ends. Any shape."""
        log_sigma = sigma.to(torch.float64).log()
        high = torch.searchsorted(self._log_sigmas, log_sigma).clamp(1, len(self) - 1)
        below, above = self._log_sigmas[high - 1], self._log_sigmas[high]
        return high - 1 + ((log_sigma - below) / (above - below)).clamp(0, 1)

    def t_to_sigma(self, t: Tensor, interpolation: Literal["log", "linear"] = "log") -> Tensor:
        """The finite σ of a fractional step, float64, any shape. Interpolates ln σ (the inverse of `sigma_to_t`) or σ."""
        t = t.to(torch.float64).clamp(0, len(self) - 1)
        low = t.floor().long()
        high = t.ceil().long()
        if interpolation == "linear":
            return torch.lerp(self.finite_sigmas[low], self.finite_sigmas[high], t - low)
        between = torch.lerp(self._log_sigmas[low], self._log_sigmas[high], t - low).exp()
        return torch.where(low == high, self.finite_sigmas[low], between)


def beta_table(config: ScheduleConfig) -> Tensor:
    """β of every step before a change to zero terminal SNR: (T,) float64."""
    T, start, end = config.timesteps, config.beta_start, config.beta_end
    if config.kind == "linear":
        return torch.linspace(start, end, T, dtype=torch.float64)
    if config.kind == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=torch.float64) ** 2
    if config.kind == "cosine":
        angles = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * (math.pi / 2)
        alphas_cumprod = angles.cos() ** 2
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
    raise DaguerreError(f"Unknown schedule {config.kind!r}; use one of {', '.join(BETA_KINDS)}.{nearest(config.kind, BETA_KINDS)}")


def _sigmas(alphas_cumprod: Tensor) -> Tensor:
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
