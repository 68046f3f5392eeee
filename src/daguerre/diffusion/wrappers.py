"""Functions that wrap a `Denoise` and modify x0, independent of network and sampler."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.schedule import Schedule

MIN_COMPUTED = 4  # steps at the start of a run that a forecast must not replace


def clip_x0(denoise: Denoise, limit: float = 1.0) -> Denoise:
    """Clip x0 to ±limit, for pixel-space models, whose images lie in [−1, 1] (Ho et al. 2020, arXiv:2006.11239, section 3.2)."""
    return lambda x, sigma: denoise(x, sigma).clamp(-limit, limit)


def dynamic_threshold(denoise: Denoise, quantile: float = 0.995, maximum: float = float("inf")) -> Denoise:
    """Dynamic thresholding: clip each x0 at a quantile s ≥ 1 of its absolute values and divide it by s; for pixel-space models with strong
    guidance (Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    maximum: the upper limit of s; with 1 (the default of diffusers) the result is that of `clip_x0`.
    """

    def thresholded(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        limit = x0.flatten(1).float().abs().quantile(quantile, dim=1).clamp(1, maximum).to(x0.dtype)  # (B,)
        limit = limit.reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -limit), limit) / limit

    return thresholded


def keep_epsilon(wrapper: Callable[[Denoise], Denoise], denoise: Denoise, sigmas: Tensor, *, eta: float = 0.0) -> Denoise:
    """Apply `wrapper` (clipping or thresholding) to x0, but let each step of `euler` use the ε of the original x0.

    This is diffusers' DDIM with `clip_sample`. A step of `euler` from σ to r·σ returns (1 − r)·D + r·x. With a denoiser
    D' = (D_wrapped − r·D)/(1 − r) it returns D_wrapped + r·(x − D). `sigmas` and `eta` must be those of the run.
    """
    targets = {}
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
        targets[sigma] = (sigma_next**2 - up**2) ** 0.5

    def with_original_epsilon(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        r = targets[sigma.item()] / sigma.item()
        return (wrapper(lambda _x, _sigma: x0)(x, sigma) - r * x0) / (1 - r)

    return with_original_epsilon


def replace_known(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Inpainting: x0 is `known` where the mask is 0, the prediction where it is 1, and a blend in between (Lugmayr et al. 2022,
    arXiv:2201.09865, section 4.1, in terms of x0).

    If a deterministic sampler starts with x = known + σ·ε, the known region of x is known + σ·ε at every σ, and exactly `known` at the end.

    Args:
        known: (B, C, H, W) or (1, C, H, W) image or latent.
        mask: (B, 1, H, W) or (1, 1, H, W) in [0, 1].
    """
    return lambda x, sigma: torch.lerp(known.to(x), denoise(x, sigma), mask.to(x))


def computed_steps(steps: int, every: int = 3, jumps: Sequence[int] = ()) -> list[bool]:
    """Which steps of a run compute x0 where the others forecast it: the first four, the last tenth, and every `every`-th between them.

    jumps: steps from which the denoiser is another one, for instance of another prompt; these and the ones after them are computed.
    """
    last = steps - math.ceil(steps / 10)
    after = {step + offset for step in jumps for offset in (0, 1)}
    first = MIN_COMPUTED - 1
    return [step <= first or step >= last or (step - first) % every == 0 or step in after for step in range(steps)]


def forecast_x0(denoise: Denoise, sigmas: Tensor, computed: Sequence[bool]) -> Denoise:
    """Compute x0 only in some steps; in the others it is on the line through the last two computed ones, as a function of ln σ.

    The guided x0 changes slowly along a deterministic trajectory, but not at both ends of the run, which must be computed. The result is
    for one run of a sampler that calls it once for each step. After the forecasts of diffusion caches (Liu et al. 2025, arXiv:2503.06923).

    sigmas: (N + 1,) of the run. computed: for each of its N steps, from `computed_steps`.
    """
    inner = [-sigma for sigma in sigmas[1:-1].tolist()]  # ascending
    known: list[tuple[float, Tensor]] = []  # (ln σ, x0) of the last two computed steps

    def forecast(x: Tensor, sigma: Tensor) -> Tensor:
        at = sigma.log().item()
        if computed[bisect_right(inner, -sigma.item())] or len(known) < 2:
            x0 = denoise(x, sigma)
            known[:] = [*known[-1:], (at, x0)]
            return x0
        (at_a, x0_a), (at_b, x0_b) = known
        return torch.lerp(x0_a, x0_b, (at - at_a) / (at_b - at_a))

    return forecast


def lcm_boundary(denoise: Denoise, schedule: Schedule, *, scaling: float = 10.0, sigma_data: float = 0.5) -> Denoise:
    """The boundary condition of latent consistency models, c_skip(t)·x/√(σ²+1) + c_out(t)·x0, which makes D(x) = x at t = 0 (Song et al.
    2023, arXiv:2303.01469, eq. 5; Luo et al. 2023, arXiv:2310.04378).

    scaling: the factor on t, `timestep_scaling` in diffusers' LCMScheduler.
    """

    def bounded(x: Tensor, sigma: Tensor) -> Tensor:
        t = scaling * schedule.sigma_to_t(sigma)
        c_skip = sigma_data**2 / (t**2 + sigma_data**2)
        return c_skip / (sigma**2 + 1).sqrt() * x + (1 - c_skip).sqrt() * denoise(x, sigma)

    return bounded
