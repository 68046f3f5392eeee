"""The variational bound on −log p(x0), in bits per dimension (Ho et al. 2020, arXiv:2006.11239, eq. 5):

    L_T = KL(q(x_T|x0) ‖ N(0, 1)),   L_{t−1} = KL(q(x_{t−1}|x_t, x0) ‖ p(x_{t−1}|x_t)),   L_0 = −log p(x0|x_1)

q(x_{t−1}|x_t, x0) has the mean μ̃ = a·x0 + b·x_t, a = √ᾱ_{t−1}·β/(1 − ᾱ), and the variance β̃ = β·(1 − ᾱ_{t−1})/(1 − ᾱ) (eq. 7). p has the
same mean with the predicted x0, and the variance β̃ (small), β (large) or a learned one. As in the paper's code, the first β̃, which is 0,
is replaced by the second. L_0 is the probability of a pixel's 8-bit value: the Gaussian integrated over x0 ± 1/255, to infinity at the
darkest and the brightest value (eq. 13).

The index t counts from 0, as everywhere in the code: step t = 0 is the paper's t = 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from daguerre.diffusion.denoiser import Denoise, add_noise
from daguerre.diffusion.learned_variance import Variance
from daguerre.diffusion.schedule import Schedule

HALF_BIN = 1 / 255  # half the distance of two 8-bit values in [−1, 1]
EDGE = 0.999  # beyond it a pixel has the darkest or the brightest value
MIN_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Posterior:
    """Per step (T,), float64: the coefficient a of x0 in μ̃, and the logarithms of β̃ (the first replaced by the second) and of β."""

    x0_coefficient: Tensor
    log_small: Tensor
    log_large: Tensor

    @classmethod
    def of(cls, schedule: Schedule) -> "Posterior":
        alpha_bar = schedule.alphas_cumprod
        before = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        small = beta * (1 - before) / (1 - alpha_bar)
        small = torch.cat([small[1:2], small[1:]])
        return cls(before.sqrt() * beta / (1 - alpha_bar), small.log(), beta.log())

    def log_variance(self, t: Tensor, variance: Variance, like: Tensor, fraction: Tensor | None = None) -> Tensor:
        """log σ² of p at steps t (B,), broadcastable to `like` (B, *). fraction: of a learned variance, (B, *)."""
        small, large = (_expand(each[t], like) for each in (self.log_small, self.log_large))
        if variance == "small":
            return small
        if variance == "large":  # the first β is far below the error of the first step, hence the second β̃ there, as in the paper's code
            return torch.where(_expand(t == 0, like), small, large)
        assert fraction is not None, "a learned variance needs its fraction"
        return fraction * large + (1 - fraction) * small

    def bound_terms(self, t: Tensor, x0: Tensor, predicted_x0: Tensor, log_variance: Tensor) -> Tensor:
        """L_{t−1} for t > 0 and L_0 for t = 0, in bits per dimension: (B,). All images (B, *), t (B,)."""
        log_small, a = _expand(self.log_small[t], x0), _expand(self.x0_coefficient[t], x0)
        distance = (a * (x0 - predicted_x0)).square()
        kl = 0.5 * (log_variance - log_small - 1 + (log_small - log_variance).exp() + distance * (-log_variance).exp())
        nll = -discretised_log_likelihood(x0, predicted_x0, 0.5 * log_variance)
        return torch.where(_expand(t == 0, x0), nll, kl).flatten(1).mean(1) / math.log(2)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log p (*) of pixels x (*) of 8 bits, in [−1, 1], under a Gaussian integrated over each pixel's bin (eq. 13)."""
    inverse_std = (-log_std).exp()
    upper, lower = (x - mean + HALF_BIN) * inverse_std, (x - mean - HALF_BIN) * inverse_std
    inside = (torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=MIN_PROBABILITY).log()
    darkest, brightest = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    return torch.where(x < -EDGE, darkest, torch.where(x > EDGE, brightest, inside))


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T in bits per dimension (B,), of images x0 (B, *): how much of them the last step still shows."""
    alpha_bar = schedule.alphas_cumprod[-1].to(x0)
    nats = 0.5 * (alpha_bar * x0.square() - alpha_bar - torch.log1p(-alpha_bar))
    return nats.flatten(1).mean(1) / math.log(2)


@dataclass(frozen=True)
class VariationalBound:
    """The terms of each image in bits per dimension. prior: L_T (B,). steps: (B, T), from L_0 at index 0 to L_{T−1}."""

    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """The bound (B,)."""
        return self.prior + self.steps.sum(1)


def variational_bound(
    denoise: Denoise,
    x0: Tensor,
    schedule: Schedule,
    noise: Callable[[], Tensor],
    *,
    variance: Variance = "small",
    fraction: Callable[[int], Tensor] | None = None,
    on_step: Callable[[int], None] = lambda _t: None,
) -> VariationalBound:
    """Every term of the bound for images x0 (B, *) of 8 bits in [−1, 1], with one noise sample per term. Calls `denoise` T times.

    Predicted images are clipped to [−1, 1], as in sampling.

    Args:
        noise: returns new standard normal noise (B, *) at each call.
        fraction: of a learned variance, for the last call of `denoise` (see `LearnedVariance.fraction`).
        on_step: called with each t, from T − 1 down to 0.
    """
    posterior, terms = Posterior.of(schedule), []
    for step in reversed(range(len(schedule))):
        t, sigma = torch.full((len(x0),), step), schedule.sigmas[step]
        x_t = add_noise(x0, noise(), schedule.alphas_cumprod[t])
        predicted = denoise(x_t if sigma.isinf() else x_t * (1 + sigma**2).sqrt().to(x_t), sigma).clamp(-1, 1)
        log_variance = posterior.log_variance(t, variance, x0, fraction(len(x0)) if fraction and variance == "learned" else None)
        terms.append(posterior.bound_terms(t, x0, predicted, log_variance))
        on_step(step)
    return VariationalBound(prior_term(schedule, x0), torch.stack(terms[::-1], dim=1))


def _expand(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, …) on the device of `like`, in its dtype if they are numbers."""
    values = values.reshape(-1, *[1] * (like.ndim - 1))
    return values.to(like.device) if values.dtype == torch.bool else values.to(like)
