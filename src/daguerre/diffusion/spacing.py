"""The noise levels that a sampler visits: N values of σ, then 0 or the schedule's least σ (Lin et al. 2023, arXiv:2305.08891, table 2).

`leading`, `linspace`, `trailing`, `sgm_uniform`, `simple`, `beta` and `lcm` are spacings in t, the steps of the schedule; the others are
spacings in σ.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from daguerre.diffusion.schedule import Schedule
from daguerre.errors import DaguerreError, nearest


def leading(schedule: Schedule, steps: int, *, steps_offset: int = 0, drop: int = 0) -> Tensor:
    """t = 0, r, 2r, … with r = ⌊T/N⌋, plus an offset; never reaches the noisiest step.

    drop: compute N + drop steps and omit the lowest (diffusers' multistep solvers use 1).
    """
    return schedule.t_to_sigma(torch.arange(steps + drop - 1, drop - 1, -1) * (len(schedule) // (steps + drop)) + steps_offset)


def linspace(
    schedule: Schedule, steps: int, *, drop: int = 0, round_t: bool = False, interpolation: Literal["log", "linear"] = "log"
) -> Tensor:
    """Even in t from T − 1 to 0, both included.

    drop: compute N + drop steps and omit the lowest. round_t: round t to integers. interpolation: of σ between two t, in ln σ or in σ.
    """
    t = torch.linspace(len(schedule) - 1, 0, steps + drop, dtype=torch.float64)[:steps]
    return schedule.t_to_sigma(t.round() if round_t else t, interpolation)


def trailing(schedule: Schedule, steps: int) -> Tensor:
    """t = T, T − T/N, … rounded, minus one: starts at the noisiest step, as zero terminal SNR requires."""
    return schedule.t_to_sigma((len(schedule) - torch.arange(steps, dtype=torch.float64) * (len(schedule) / steps)).round() - 1)


def sgm_uniform(schedule: Schedule, steps: int) -> Tensor:
    """Even in t from T − 1, with a last step of equal length: `linspace` without its step at t = 0."""
    return linspace(schedule, steps, drop=1)


def simple(schedule: Schedule, steps: int) -> Tensor:
    """t = T − 1 − ⌊i·T/N⌋: every T/N-th step of the schedule."""
    return schedule.t_to_sigma(len(schedule) - 1 - torch.arange(steps) * len(schedule) // steps)


def beta_spacing(
    schedule: Schedule,
    steps: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    over: Literal["t", "sigma"] = "t",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """t at the quantiles of a beta distribution: dense at both ends (Lee et al. 2024, arXiv:2407.12173).

    over: "sigma" places the quantiles between σ_min and σ_max, as diffusers does.
    """
    if over == "sigma":
        quantiles = beta_quantile(1 - torch.linspace(0, 1, steps, dtype=torch.float64), alpha, beta)
        low, high = _sigma_range(schedule, sigma_min, sigma_max)
        return low + quantiles * (high - low)
    quantiles = beta_quantile(1 - torch.arange(steps, dtype=torch.float64) / steps, alpha, beta)
    return schedule.t_to_sigma(quantiles * (len(schedule) - 1))


def lcm_spacing(schedule: Schedule, steps: int, *, origin_steps: int = 50) -> Tensor:
    """N of the distillation steps of a consistency model, t = r − 1, 2r − 1, … with r = ⌊T/origin⌋ (Luo et al. 2023, arXiv:2310.04378)."""
    if steps > origin_steps:
        raise DaguerreError(
            f"The spacing 'lcm', the default of the samplers lcm and tcd, allows at most {origin_steps} steps, not {steps}; use fewer "
            "steps or another spacing."
        )
    chosen = torch.arange(steps) * origin_steps // steps
    return schedule.t_to_sigma((origin_steps - chosen) * (len(schedule) // origin_steps) - 1)


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Even in σ^(1/ρ): shorter steps at low noise (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    low, high = _sigma_range(schedule, sigma_min, sigma_max)
    return torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho


def exponential(schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Even in ln σ, that is, in the logarithm of the signal-to-noise ratio (Lu et al. 2022, arXiv:2206.00927)."""
    return polyexponential(schedule, steps, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential(
    schedule: Schedule, steps: int, *, rho: float = 1.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """A power of an even ramp in ln σ: denser at low noise for ρ > 1 (Katherine Crowson, k-diffusion)."""
    low, high = _sigma_range(schedule, sigma_min, sigma_max)
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
    return (ramp * (math.log(high) - math.log(low)) + math.log(low)).exp()


def kl_optimal(schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Even in arctan σ: optimal for Gaussian data (Sabour et al. 2024, arXiv:2404.14507)."""
    low, high = _sigma_range(schedule, sigma_min, sigma_max)
    return torch.linspace(math.atan(high), math.atan(low), steps, dtype=torch.float64).tan()


# Noise levels for ten steps, optimised for these models (Sabour et al. 2024, arXiv:2404.14507).
# fmt: off
ALIGNED_SIGMAS = {
    "sd1": (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
            0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    "sdxl": (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
             0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
}
# fmt: on


def align_your_steps(schedule: Schedule, steps: int, *, family: Literal["sd1", "sdxl"] = "sd1") -> Tensor:
    """Noise levels optimised for Stable Diffusion 1 or XL; interpolated in ln σ if there are not ten steps."""
    if family not in ALIGNED_SIGMAS:
        raise DaguerreError(
            f"Align Your Steps has no noise levels for {family!r}; use one of {', '.join(ALIGNED_SIGMAS)}.{nearest(family, ALIGNED_SIGMAS)}"
        )
    known = torch.tensor(ALIGNED_SIGMAS[family], dtype=torch.float64).log()  # (11,)
    at = torch.linspace(0, len(known) - 1, steps + 1, dtype=torch.float64)[:steps]
    low = at.floor().long()
    return torch.lerp(known[low], known[low + 1], at - low).exp()


SPACINGS: dict[str, Callable[..., Tensor]] = {
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "beta": beta_spacing,
    "lcm": lcm_spacing,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
}


def get_sigmas(
    schedule: Schedule,
    steps: int,
    spacing: str = "trailing",
    *,
    final: Literal["zero", "sigma_min"] = "zero",
    terminal: Literal["capped", "exact"] = "capped",
    **options: Any,
) -> Tensor:
    """The noise levels of a sampling run: (steps + 1,) float64, strictly descending.

    Args:
        steps: the number of denoising steps, 1 to T.
        spacing: a name in `SPACINGS`.
        final: the last σ, 0 or the schedule's least σ. If the spacing itself ends at the least σ, the result is one shorter, (steps,).
        terminal: the first σ of a schedule that ends in pure noise (zero terminal SNR, cosine): "capped" (ᾱ = 2⁻²⁴, σ ≈ 4096) or "exact"
            (inf, see `Sampler.exact_first_step`). It makes no difference for other schedules.
        options: keyword arguments of the spacing.

    Raises:
        DaguerreError: an unknown spacing or option, or steps outside 1 to T.
    """
    if spacing not in SPACINGS:
        raise DaguerreError(f"Unknown spacing {spacing!r}; use one of {', '.join(SPACINGS)}.{nearest(spacing, SPACINGS)}")
    if not 1 <= steps <= len(schedule):
        raise DaguerreError(f"steps is {steps}; it must be 1 to {len(schedule)}, the number of steps the model was trained with.")
    known = SPACINGS[spacing].__kwdefaults__ or {}
    if unknown := [name for name in options if name not in known]:
        raise DaguerreError(f"The spacing {spacing!r} has no option {unknown[0]!r}; its options are {', '.join(known) or 'none'}.")
    sigmas = SPACINGS[spacing](schedule, steps, **options)
    last = schedule.finite_sigmas[0] if final == "sigma_min" else torch.zeros((), dtype=torch.float64)
    if sigmas[-1] > last * (1 + 1e-9):  # the spacing may end at the least σ already, up to rounding
        sigmas = torch.cat([sigmas, last.reshape(1)])
    pure_noise = schedule.finite_sigmas[-1]
    if terminal == "exact" and schedule.sigmas[-1] > pure_noise and torch.isclose(sigmas[0], pure_noise):
        sigmas[0] = math.inf
    return sigmas


def midpoints(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """The σ half-way in t of every step, (N,), where PNDM's Runge–Kutta steps evaluate the network."""
    t = schedule.sigma_to_t(sigmas)
    return schedule.t_to_sigma((t[1:] + t[:-1]) / 2)


def tcd_targets(schedule: Schedule, sigmas: Tensor, gamma: float = 0.3) -> Tensor:
    """The σ that TCD denoises to in each step, (N,): at t = ⌊(1 − γ)·t_next⌋, or 0 in a step to 0 (Zheng et al. 2024, arXiv:2402.19159)."""
    t = schedule.sigma_to_t(sigmas[1:]).round()
    target = ((1 - gamma) * t).floor()
    return torch.where((sigmas[1:] == 0) | (target == t), sigmas[1:], schedule.t_to_sigma(target))


def _sigma_range(schedule: Schedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """(σ_min, σ_max), by default those of the schedule."""
    return sigma_min or schedule.finite_sigmas[0].item(), sigma_max or schedule.finite_sigmas[-1].item()


def beta_quantile(probabilities: Tensor, a: float, b: float) -> Tensor:
    """The quantiles of Beta(a, b) for probabilities of any shape in [0, 1]; bisection to float64 precision."""
    low, high = torch.zeros_like(probabilities), torch.ones_like(probabilities)
    for _ in range(64):
        middle = (low + high) / 2
        below = beta_distribution(middle, a, b) < probabilities
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(probabilities < 1, (low + high) / 2, 1.0)


def beta_distribution(x: Tensor, a: float, b: float) -> Tensor:
    """P(X ≤ x) for X of Beta(a, b): x^a·(1−x)^b/(a·B(a,b))·Σ Π (a+b+n)/(a+1+n)·x^(n+1) (NIST DLMF 8.17.8), on the side where x ≤ 1/2."""

    def lower(x: Tensor, a: float, b: float) -> Tensor:
        n = torch.arange(100, dtype=torch.float64)  # each term is about half the one before
        factors = torch.cat([torch.ones(1, dtype=torch.float64), ((a + b + n) / (a + 1 + n)).cumprod(0)])  # (101,)
        front = math.exp(math.lgamma(a + b) - math.lgamma(a + 1) - math.lgamma(b))
        return front * x**a * (1 - x) ** b * (x[..., None] ** torch.arange(101) @ factors)

    return torch.where(x <= 0.5, lower(x.clamp(max=0.5), a, b), 1 - lower((1 - x).clamp(max=0.5), b, a))
