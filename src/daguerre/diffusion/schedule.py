"""How much noise each training step carries: x_t = √ᾱ·x0 + √(1−ᾱ)·ε, ᾱ_t = Π(1 − β_s) (Ho et al. 2020, arXiv:2006.11239, eq. 4).

Dividing by √ᾱ gives the coordinates x0 + σ·ε of the samplers, with σ = √((1−ᾱ)/ᾱ) and signal-to-noise ratio 1/σ².
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from daguerre.errors import DaguerreError, nearest

# ᾱ of the last step where it ought to be 0 and a finite σ is wanted: the smallest positive half-precision number, so σ ≈ 4096.
TERMINAL_CAP = 2.0**-24

BETA_KINDS = ("linear", "scaled_linear", "cosine")


@dataclass(frozen=True)
class ScheduleConfig:
    """`beta_start` and `beta_end` are β of the first and the last of `timesteps` steps; the cosine schedule does not use them.

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
        alpha_bars: (T,) float64, descending; the last is 0 under zero terminal SNR.
        sigmas: (T,) float64, ascending; the last is inf under zero terminal SNR.
        finite_sigmas: (T,) the same with the last ᾱ no smaller than 2⁻²⁴; `t`, `sigma` and the spacings read this one.

    Raises:
        DaguerreError: an unknown kind.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.alphas_cumprod = torch.cumprod(1 - _betas(config), 0)  # (T,)
        if config.zero_terminal_snr:
            roots = self.alphas_cumprod.sqrt()
            self.alphas_cumprod = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        self.sigmas = _sigma(self.alphas_cumprod)
        self.finite_sigmas = _sigma(self.alphas_cumprod.clamp(min=TERMINAL_CAP))
        self._log_sigmas = self.finite_sigmas.log()

    def __len__(self) -> int:
        return self.config.timesteps

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The step whose noise is σ, as a float in [0, T − 1]; linear in ln σ between steps, the end steps beyond them. Any shape."""
        at = sigma.to(torch.float64).log()
        high = torch.searchsorted(self._log_sigmas, at).clamp(1, len(self) - 1)
        below, above = self._log_sigmas[high - 1], self._log_sigmas[high]
        return high - 1 + ((at - below) / (above - below)).clamp(0, 1)

    def t_to_sigma(self, t: Tensor, interpolation: Literal["log", "linear"] = "log") -> Tensor:
        """The finite σ of a step, float64, any shape. Between two steps ln σ is linear, the inverse of `t`, or σ itself is."""
        t = t.to(torch.float64).clamp(0, len(self) - 1)
        low = t.floor().long()
        high = t.ceil().long()
        if interpolation == "linear":
            return torch.lerp(self.finite_sigmas[low], self.finite_sigmas[high], t - low)
        between = torch.lerp(self._log_sigmas[low], self._log_sigmas[high], t - low).exp()
        return torch.where(low == high, self.finite_sigmas[low], between)


def _betas(config: ScheduleConfig) -> Tensor:
    """(T,) float64."""
    T, start, end = config.timesteps, config.beta_start, config.beta_end
    if config.kind == "linear":
        return torch.linspace(start, end, T, dtype=torch.float64)
    if config.kind == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=torch.float64) ** 2
    if config.kind == "cosine":
        angles = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * (math.pi / 2)
        alpha_bars = angles.cos() ** 2
        return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=0.999)
    raise DaguerreError(f"There is no schedule {config.kind!r}; it is one of {', '.join(BETA_KINDS)}.{nearest(config.kind, BETA_KINDS)}")


def _sigma(alpha_bars: Tensor) -> Tensor:
    return ((1 - alpha_bars) / alpha_bars).sqrt()
