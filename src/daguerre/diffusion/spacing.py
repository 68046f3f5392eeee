"""Which σ a sampler visits: N noise levels, and then 0 or the schedule's least σ (Lin et al. 2023, arXiv:2305.08891, table 2).

`leading`, `linspace`, `trailing`, `sgm_uniform`, `simple`, `beta` and `lcm` divide the steps t of the schedule; the others divide σ itself.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from daguerre.diffusion.schedule import Schedule
from daguerre.errors import DaguerreError, nearest


def leading(schedule: Schedule, steps: int, *, steps_offset: int = 0, drop: int = 0) -> Tensor:
    """t = 0, r, 2r, … with r = ⌊T/N⌋, all moved up by the offset: never reaches the noisiest step.

    drop: divide for N + drop steps and leave out the lowest (1 is what diffusers' multistep solvers do).
    """
    return schedule.t_to_sigma(torch.arange(steps + drop - 1, drop - 1, -1) * (len(schedule) // (steps + drop)) + steps_offset)


def linspace(
    schedule: Schedule, steps: int, *, drop: int = 0, round_t: bool = False, interpolation: Literal["log", "linear"] = "log"
) -> Tensor:
    """Even in t from T − 1 to 0, both included.

    drop: divide for N + drop steps and leave out the lowest. round_t: round t to integers. interpolation: of σ between two t.
    """
    t = torch.linspace(len(schedule) - 1, 0, steps + drop, dtype=torch.float64)[:steps]
    return schedule.t_to_sigma(t.round() if round_t else t, interpolation)


def trailing(schedule: Schedule, steps: int) -> Tensor:
    """t = T, T − T/N, … rounded, less one: begins at the noisiest step, so it is the one for zero terminal SNR."""
    return schedule.t_to_sigma((len(schedule) - torch.arange(steps, dtype=torch.float64) * (len(schedule) / steps)).round() - 1)


def sgm_uniform(schedule: Schedule, steps: int) -> Tensor:
    """Even in t from T − 1, the last step as long as the others: `linspace` without its step at t = 0."""
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

    over: "sigma" spreads the quantiles between σ_min and σ_max, as diffusers does.
    """
    if over == "sigma":
        quantiles = beta_quantile(1 - torch.linspace(0, 1, steps, dtype=torch.float64), alpha, beta)
        low, high = _sigma_range(schedule, sigma_min, sigma_max)
        return low + quantiles * (high - low)
    quantiles = beta_quantile(1 - torch.arange(steps, dtype=torch.float64) / steps, alpha, beta)
    return schedule.t_to_sigma(quantiles * (len(schedule) - 1))


def lcm_spacing(schedule: Schedule, steps: int, *, origin_steps: int = 50) -> Tensor:
    """N of the steps a consistency model was distilled on, t = r − 1, 2r − 1, … with r = ⌊T/origin⌋ (Luo et al. 2023, arXiv:2310.04378)."""
    if steps > origin_steps:
        raise DaguerreError(
            f"{steps} steps were asked for; the spacing 'lcm', which the samplers lcm and tcd bring along, has {origin_steps} at the most: "
            "ask for no more, or name another spacing."
        )
    chosen = torch.arange(steps) * origin_steps // steps
    return schedule.t_to_sigma((origin_steps - chosen) * (len(schedule) // origin_steps) - 1)


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Even in σ^(1/ρ): short steps where there is little noise (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    low, high = _sigma_range(schedule, sigma_min, sigma_max)
    return torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho


def exponential(schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Even in ln σ, which is even in the logarithm of the signal-to-noise ratio (Lu et al. 2022, arXiv:2206.00927)."""
    return polyexponential(schedule, steps, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max)


def polyexponential(
    schedule: Schedule, steps: int, *, rho: float = 1.0, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """A power of an even ramp in ln σ: dense at the low end for ρ > 1 (Katherine Crowson, k-diffusion)."""
    low, high = _sigma_range(schedule, sigma_min, sigma_max)
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
    return (ramp * (math.log(high) - math.log(low)) + math.log(low)).exp()


def kl_optimal(schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Even in arctan σ: the optimum for Gaussian pictures (Sabour et al. 2024, arXiv:2404.14507)."""
    low, high = _sigma_range(schedule, sigma_min, sigma_max)
    return torch.linspace(math.atan(high), math.atan(low), steps, dtype=torch.float64).tan()


# Grids of ten steps found by optimisation for these models, σ from the most noise down (Sabour et al. 2024, arXiv:2404.14507).
# fmt: off
ALIGNED = {
    "sd1": (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
            0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    "sdxl": (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
             0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
}
# fmt: on


def align_your_steps(schedule: Schedule, steps: int, *, family: Literal["sd1", "sdxl"] = "sd1") -> Tensor:
    """The grid optimised for Stable Diffusion 1 or XL, interpolated in ln σ for other numbers of steps than ten."""
    if family not in ALIGNED:
        raise DaguerreError(
            f"There are no aligned steps for {family!r}; there are some for {', '.join(ALIGNED)}.{nearest(family, ALIGNED)}"
        )
    known = torch.tensor(ALIGNED[family], dtype=torch.float64).log()  # (11,)
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
    """The grid of a sampling run: (steps + 1,) float64, strictly descending.

    Args:
        steps: noise levels to visit, 1 to T.
        spacing: a name in `SPACINGS`.
        final: where the last step goes, to 0 or to the schedule's least σ; a spacing that itself ends there is then one step shorter.
        terminal: under zero terminal SNR, the first σ: "capped" (ᾱ = 2⁻²⁴, σ ≈ 4096) or "exact" (inf; the sampler takes that step
            apart, see `Sampler`). Other schedules know no difference.
        options: keywords of the spacing.

    Raises:
        DaguerreError: an unknown spacing or option, or steps that are not between 1 and T.
    """
    if spacing not in SPACINGS:
        raise DaguerreError(f"There is no spacing {spacing!r}; there are {', '.join(SPACINGS)}.{nearest(spacing, SPACINGS)}")
    if not 1 <= steps <= len(schedule):
        raise DaguerreError(f"{steps} steps were asked for; the model was trained on {len(schedule)}, so ask for 1 to {len(schedule)}.")
    known = SPACINGS[spacing].__kwdefaults__ or {}
    if unknown := [name for name in options if name not in known]:
        raise DaguerreError(f"The spacing {spacing!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
    sigmas = SPACINGS[spacing](schedule, steps, **options)
    last = schedule.finite_sigmas[0] if final == "sigma_min" else torch.zeros((), dtype=torch.float64)
    if sigmas[-1] > last * (1 + 1e-9):  # a spacing may itself end at the least σ, up to rounding
        sigmas = torch.cat([sigmas, last.reshape(1)])
    if terminal == "exact" and schedule.sigmas[-1].isinf() and torch.isclose(sigmas[0], schedule.finite_sigmas[-1]):
        sigmas[0] = schedule.sigmas[-1]
    return sigmas


def midpoints(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """The σ half-way in t inside every step, (N,): where PNDM's Runge–Kutta steps look."""
    t = schedule.sigma_to_t(sigmas)
    return schedule.t_to_sigma((t[1:] + t[:-1]) / 2)


def tcd_targets(schedule: Schedule, sigmas: Tensor, gamma: float = 0.3) -> Tensor:
    """Where the jumps of TCD end, (N,): at t = ⌊(1 − γ)·t_next⌋, or at 0 with the grid (Zheng et al. 2024, arXiv:2402.19159)."""
    t = schedule.sigma_to_t(sigmas[1:]).round()
    down = ((1 - gamma) * t).floor()
    return torch.where((sigmas[1:] == 0) | (down == t), sigmas[1:], schedule.t_to_sigma(down))


def _sigma_range(schedule: Schedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """(σ_min, σ_max), the schedule's own where they are not given."""
    return sigma_min or schedule.finite_sigmas[0].item(), sigma_max or schedule.finite_sigmas[-1].item()


def beta_quantile(probabilities: Tensor, a: float, b: float) -> Tensor:
    """The inverse of the distribution function of Beta(a, b) by bisection, to the last bit of float64; any shape in [0, 1]."""
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
