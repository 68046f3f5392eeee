"""Guidance is a weighted sum of denoised images: D = Σ w_i·D(x; σ, c_i), Σ w_i = 1 (Ho and Salimans 2022, arXiv:2207.12598, eq. 6).

Classifier-free guidance of scale s has the weights (s, 1−s) for (prompt, negative prompt); the paper's w is s − 1. Because the weights
sum to 1, the same sum holds for ε and v, so the prediction type of the network does not matter.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import Denoise, Denoiser, Prediction, coefficients
from daguerre.errors import DaguerreError


def classifier_free_guidance(
    denoiser: Denoiser, conditions: Sequence[Conditioning], weights: Sequence[float], *, rescale: float = 0.0
) -> Denoise:
    """One denoiser from several conditions; a call evaluates those with nonzero weight in one batch.

    Args:
        conditions: each for one image or for the whole batch.
        weights: one for each condition, summing to 1.
        rescale: 0 to 1, how far the standard deviation of the result moves back to that of the first condition (see `rescale_guidance`).

    Raises:
        DaguerreError: the number of weights differs from the number of conditions, or they do not sum to 1.
    """
    _check(conditions, weights)
    used = [i for i, weight in enumerate(weights) if weight != 0 or (i == 0 and rescale)]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        joined = replace(Conditioning.cat([conditions[i].expand(len(x)) for i in used]), num_conditions=len(used))
        x0 = denoiser(x.repeat(len(used), *[1] * (x.ndim - 1)), sigma, joined)  # (len(used)·B, *)
        parts = x0.unflatten(0, (len(used), len(x))).unbind()
        total = weights[used[0]] * parts[0]
        for i, part in zip(used[1:], parts[1:], strict=True):
            total = total + weights[i] * part
        return rescale_guidance(x, total, parts[0], sigma, rescale, denoiser.prediction) if rescale and len(used) > 1 else total

    return denoise


def rescale_guidance(x: Tensor, x0: Tensor, x0_prompt: Tensor, sigma: Tensor, amount: float, space: Prediction) -> Tensor:
    """Give the guided x0 the standard deviation that x0_prompt, of the prompt alone, has in each image: high scales overexpose images
    (Lin et al. 2023, arXiv:2305.08891, section 3.4). All (B, *); measured on F = (x0 − c_skip·x)/c_out in the given space."""
    c_skip, c_out = coefficients(space, sigma)
    guided, prompt = ((each - c_skip * x) / c_out for each in (x0, x0_prompt))
    ratio = prompt.flatten(1).std(1) / guided.flatten(1).std(1)  # (B,)
    ratio = (amount * ratio + 1 - amount).reshape(-1, *[1] * (x.ndim - 1))
    return c_skip * x + c_out * (guided * ratio)


def guidance_interval(scales: Sequence[float], low: float, high: float, *, first: int = 0, total: int | None = None) -> list[float]:
    """Guidance scales limited to the steps from the fraction `low` of the run up to `high`; elsewhere 1, which disables it
    (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    scales: of the steps number `first`, `first` + 1, … of `total` (None: of a whole run).
    """
    total = len(scales) if total is None else total
    return [scale if low * total <= step < high * total else 1.0 for step, scale in enumerate(scales, first)]


def cfg_plus_plus(scale: float, sigmas: Tensor) -> list[float]:
    """The guidance scale of each step of the grid for CFG++ of a scale in [0, 1] (Chung et al. 2024, arXiv:2406.08070, alg. 2).

    CFG++ adds the unguided ε to the guided x0. An `euler` step from σ to r·σ gives the same with ordinary guidance of scale/(1 − r).
    """
    return [scale / (1 - low / high) for high, low in pairwise(sigmas.tolist())]


def _check(conditions: Sequence[Conditioning], weights: Sequence[float]) -> None:
    if len(conditions) != len(weights):
        raise DaguerreError(f"Got {len(conditions)} conditions but {len(weights)} weights; give one weight for each condition.")
    if not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
        raise DaguerreError(f"Guidance weights must sum to 1, but {list(weights)} sum to {math.fsum(weights):g}.")
