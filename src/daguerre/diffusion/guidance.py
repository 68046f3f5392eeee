"""Guidance is a weighted sum of denoised pictures: D = Σ w_i·D(x; σ, c_i), Σ w_i = 1 (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

Classifier-free guidance of scale s is the weights (s, 1−s) over (prompt, negative); the paper's w is s − 1. Because the weights sum to 1,
the same sum holds for ε and v, so it does not matter what the network predicts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import Denoise, Denoiser, Prediction, coefficients
from daguerre.errors import DaguerreError

GuidanceWeights = Sequence[float] | Callable[[float], Sequence[float]]  # fixed, or a function of σ


def classifier_free_guidance(
    denoiser: Denoiser,
    conditions: Sequence[Conditioning],
    weights: GuidanceWeights,
    *,
    rescale: float = 0.0,
    space: Prediction | None = None,
) -> Denoise:
    """One denoiser out of several conditions; a call evaluates them in one batch, those of weight 0 not at all.

    Args:
        conditions: each for one picture or for the whole batch.
        weights: one for each condition, summing to 1; or a function that gives them for a σ (`within`, `cfg_plus_plus`).
        rescale: 0 to 1, how far the spread of the sum goes back to that of the first condition (see `rescaled`).
        space: what is rescaled, "epsilon", "v" or "x0"; None is what the network predicts, as diffusers has it.

    Raises:
        DaguerreError: the weights are not as many as the conditions, or do not sum to 1.
    """
    at = weights if callable(weights) else lambda _sigma: weights
    if not callable(weights):
        _check(conditions, weights)

    @cache
    def together(batch: int, *voices: int) -> Conditioning:
        """The very same object at each call, so that a network may see that it is told nothing new."""
        return replace(Conditioning.cat([conditions[i].expand(batch) for i in voices]), num_conditions=len(voices))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        now = at(sigma.item())
        _check(conditions, now)
        voices = [i for i, weight in enumerate(now) if weight != 0 or (i == 0 and rescale)]
        answers = denoiser(x.repeat(len(voices), *[1] * (x.ndim - 1)), sigma, together(len(x), *voices))  # (len(voices)·B, *)
        parts = answers.unflatten(0, (len(voices), len(x))).unbind()
        total = now[voices[0]] * parts[0]
        for i, part in zip(voices[1:], parts[1:], strict=True):
            total = total + now[i] * part
        return rescale_guidance(x, total, parts[0], sigma, rescale, space or denoiser.prediction) if rescale and len(voices) > 1 else total

    return denoise


def rescale_guidance(x: Tensor, x0: Tensor, like: Tensor, sigma: Tensor, amount: float, space: Prediction) -> Tensor:
    """Give the guided x0 the spread that `like`, of the prompt alone, has for each picture: strong guidance burns pictures out
    (Lin et al. 2023, arXiv:2305.08891, section 3.4). All (B, *); the spreads are those of F = (x0 − c_skip·x)/c_out in the given space."""
    c_skip, c_out = coefficients(space, sigma)
    guided, plain = ((each - c_skip * x) / c_out for each in (x0, like))
    ratio = plain.flatten(1).std(1) / guided.flatten(1).std(1)  # (B,)
    ratio = (amount * ratio + 1 - amount).reshape(-1, *[1] * (x.ndim - 1))
    return c_skip * x + c_out * (guided * ratio)


def guidance_interval(weights: Sequence[float], low: float, high: float) -> Callable[[float], Sequence[float]]:
    """Guidance only where low < σ ≤ high, elsewhere the first condition alone (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""
    alone = [1.0, *[0.0] * (len(weights) - 1)]
    return lambda sigma: weights if low < sigma <= high else alone


def cfg_plus_plus(scale: float, sigmas: Tensor) -> Callable[[float], Sequence[float]]:
    """CFG++: the guided x0 is noised with the unguided ε, so guidance stays on the manifold; the scale is in [0, 1]
    (Chung et al. 2024, arXiv:2406.08070, algorithm 2).

    A step of `euler` from σ to r·σ turns out the same with ordinary guidance of scale/(1 − r), which is what this returns for a grid; so
    it is CFG++ itself with `euler`, and its schedule of weights with other samplers.
    """
    scales = {high: scale / (1 - low / high) for high, low in pairwise(sigmas.tolist())}

    def weights(sigma: float) -> Sequence[float]:
        level = sigma if sigma in scales else min(scales, key=lambda known: abs(known - sigma))  # samplers also ask between two levels
        return scales[level], 1 - scales[level]

    return weights


def _check(conditions: Sequence[Conditioning], weights: Sequence[float]) -> None:
    if len(conditions) != len(weights):
        raise DaguerreError(f"{len(conditions)} conditions were given with {len(weights)} weights; give one weight for each.")
    if not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
        raise DaguerreError(f"The weights of guidance must sum to 1, and {list(weights)} sum to {math.fsum(weights):g}.")
