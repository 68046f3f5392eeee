"""Functions that take a `Denoise` and give one back: what is done to x0, whoever predicted it and whatever samples with it."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise
from daguerre.diffusion.schedule import Schedule


def clip_x0(denoise: Denoise, limit: float = 1.0) -> Denoise:
    """x0 within ±limit: for models of pixels, whose pictures cannot leave [−1, 1] (Ho et al. 2020, arXiv:2006.11239, section 3.2)."""
    return lambda x, sigma: denoise(x, sigma).clamp(-limit, limit)


def dynamic_threshold(denoise: Denoise, quantile: float = 0.995, maximum: float = float("inf")) -> Denoise:
    """Dynamic thresholding: x0 is clipped at a quantile s ≥ 1 of its own magnitudes and divided by s, each picture for itself; for models
    of pixels under strong guidance (Saharia et al. 2022, arXiv:2205.11487, section 2.3).

    maximum: the largest s; 1 makes it `clip`, which is what diffusers does unless told otherwise.
    """

    def thresholded(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        size = x0.flatten(1).float().abs().quantile(quantile, dim=1).clamp(1, maximum).to(x0.dtype)  # (B,)
        size = size.reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -size), size) / size

    return thresholded


def keep_epsilon(changed: Callable[[Denoise], Denoise], denoise: Denoise, sigmas: Tensor, *, eta: float = 0.0) -> Denoise:
    """Let `changed` (clip, threshold) act on x0 alone, while a step of `euler` on this grid still goes along the unchanged ε.

    This is DDIM as diffusers has it with `clip_sample`. A step to r·σ makes (1 − r)·D + r·x; asking for (1 − r)·D' = D_changed − r·D gives
    D_changed + r·(x − D).
    """
    downs = {}
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
        downs[sigma] = (sigma_next**2 - up**2) ** 0.5

    def kept(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        r = downs[sigma.item()] / sigma.item()
        return (changed(lambda _x, _sigma: x0)(x, sigma) - r * x0) / (1 - r)

    return kept


def replace_known(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Inpainting: x0 is `known` where the mask is 0 and predicted where it is 1, with a blend between (Lugmayr et al. 2022,
    arXiv:2201.09865, section 4.1, in terms of x0).

    Begin with x = known + σ·ε, and x stays the known picture with that noise at every σ, and ends as the known picture exactly.

    Args:
        known: (B, C, H, W) or (1, C, H, W) picture or latent.
        mask: (B, 1, H, W) or (1, 1, H, W) in [0, 1].
    """
    return lambda x, sigma: torch.lerp(known.to(x), denoise(x, sigma), mask.to(x))


def lcm_boundary(denoise: Denoise, schedule: Schedule, *, scaling: float = 10.0, sigma_data: float = 0.5) -> Denoise:
    """The boundary condition of latent consistency models, c_skip(t)·x/√(σ²+1) + c_out(t)·x0, under which a jump from t = 0 goes nowhere
    (Song et al. 2023, arXiv:2303.01469, eq. 5; Luo et al. 2023, arXiv:2310.04378, with t scaled by 10)."""

    def bounded(x: Tensor, sigma: Tensor) -> Tensor:
        t = scaling * schedule.sigma_to_t(sigma)
        c_skip = sigma_data**2 / (t**2 + sigma_data**2)
        return c_skip / (sigma**2 + 1).sqrt() * x + (1 - c_skip).sqrt() * denoise(x, sigma)

    return bounded
