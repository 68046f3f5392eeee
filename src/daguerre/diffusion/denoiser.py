"""A network becomes a denoiser: D(x; σ) = c_skip(σ)·x + c_out(σ)·F(x/√(σ²+1), t(σ)), whatever F was trained to predict.

    epsilon  the noise ε              (Ho et al. 2020, arXiv:2006.11239, eq. 14)
    v        √ᾱ·ε − √(1−ᾱ)·x0         (Salimans & Ho 2022, arXiv:2202.00512, section 4)
    x0       the clean picture

Here x = x0 + σ·ε. The network sees the variance-preserving √ᾱ·x0 + √(1−ᾱ)·ε, which is x/√(σ²+1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.schedule import Schedule
from daguerre.errors import DaguerreError, nearest

Denoise = Callable[[Tensor, Tensor], Tensor]  # x (B, *), σ () -> E[x0 | x] (B, *)
NetworkFn = Callable[[Tensor, Tensor, Conditioning], Tensor]  # x/√(σ²+1) (B, *), t (B,), conditions -> prediction (B, *)
Prediction = Literal["epsilon", "v", "x0"]
InitialScale = Literal["variance_preserving", "sigma_max"]
Rounding = Literal["none", "nearest", "down"]

ROUNDINGS: dict[Rounding, Callable[[Tensor], Tensor]] = {"none": lambda t: t, "nearest": torch.round, "down": lambda t: (t + 1e-6).floor()}
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v", "x0")


@dataclass(frozen=True)
class Denoiser:
    """The network with its schedule and prediction inside.

    dtype: what the network computes in; None leaves the dtype of x. The answer always has the dtype of x.
    rounding: of t between two steps of training. "none" interpolates; "nearest" and "down" are what diffusers' multistep solvers do with
        the karras and with the exponential and beta spacings.
    """

    network: NetworkFn
    schedule: Schedule
    prediction: Prediction
    dtype: torch.dtype | None = None
    rounding: Rounding = "none"

    def __post_init__(self) -> None:
        check_prediction(self.prediction)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """E[x0 | x] for x (B, *) = x0 + σ·ε. At σ = inf, x is the pure noise ε itself.

        Raises:
            DaguerreError: σ = inf with epsilon prediction, which says nothing about x0 there.
        """
        infinite = bool(sigma.isinf())
        if infinite and self.prediction == "epsilon":
            raise DaguerreError("A network that predicts epsilon cannot start at σ = inf; train it with v or x0, or take a finite σ.")
        t = ROUNDINGS[self.rounding](self.schedule.sigma_to_t(sigma)).to(x.device, torch.float32).expand(len(x))
        x_in = x if infinite else x / (sigma**2 + 1).sqrt()
        output = self.network(x_in.to(self.dtype or x.dtype), t, cond or Conditioning()).to(x.dtype)
        c_skip, c_out = coefficients(self.prediction, sigma)
        return c_skip * x + c_out * output


def coefficients(prediction: Prediction, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of D = c_skip·x + c_out·F; for v and x0 they have their limits at σ = inf."""
    if prediction == "epsilon":
        return torch.ones_like(sigma), -sigma
    if prediction == "v":
        return 1 / (sigma**2 + 1), -1 / (1 + sigma**-2).sqrt()
    return torch.zeros_like(sigma), torch.ones_like(sigma)


def check_prediction(prediction: str) -> None:
    """Raise DaguerreError for what no network predicts."""
    if prediction not in PREDICTIONS:
        raise DaguerreError(f"No network predicts {prediction!r}; it is one of {', '.join(PREDICTIONS)}.{nearest(prediction, PREDICTIONS)}")


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """√ᾱ·x0 + √(1−ᾱ)·ε for pictures (B, *) and ᾱ (B,): what the network sees in training."""
    alpha_bar = _expand_to(alpha_bar, x0)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def scale_initial_noise(noise: Tensor, sigma: Tensor, scale: InitialScale = "variance_preserving") -> Tensor:
    """The initial x at σ, (B, *), from standard normal noise (B, *).

    scale: "variance_preserving" is √(σ²+1)·ε: the network's input is then ε itself, as in the last training step. "sigma_max" is σ·ε, as in
        k-diffusion and some schedulers of diffusers. At σ = 14.6 they differ by 0.2 %, at σ = inf (both ε) not at all.
    """
    if sigma.isinf():
        return noise
    return noise * ((sigma**2 + 1).sqrt() if scale == "variance_preserving" else sigma)


def to_variance_preserving(x: Tensor, sigma: Tensor) -> Tensor:
    """The final image or latent (B, *) from x at the last σ: x/√(σ²+1). At σ = 0 nothing changes. The scheduler published with Stable
    Diffusion 1 ends at the schedule's least σ and leaves that noise in."""
    return x / (sigma**2 + 1).sqrt()


def prediction_target(prediction: Prediction, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the network shall answer, (B, *), for pictures x0 (B, *), noise eps (B, *) and ᾱ (B,)."""
    check_prediction(prediction)
    if prediction == "epsilon":
        return eps
    if prediction == "x0":
        return x0
    return add_noise(eps, -x0, alpha_bar)


def training_pair(prediction: Prediction, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """(input, target) of one training step, each (B, *)."""
    return add_noise(x0, eps, alpha_bar), prediction_target(prediction, x0, eps, alpha_bar)


def loss_weight(prediction: Prediction, snr: Tensor, gamma: float | None = None, *, floor: float = 0.0) -> Tensor:
    """The weight of the squared error of a prediction, as the ratio SNR = ᾱ/(1−ᾱ) of its step asks, (B,); 1 where gamma is None.

    Min-SNR weights the error of x0 by min(SNR, γ) (Hang et al. 2023, arXiv:2303.09556, eq. 6). The error of ε is SNR times, that of v
    SNR + 1 times the error of x0, hence the divisors. At SNR = 0 the weight is 1 for ε and 0 for v and x0: with zero terminal SNR a
    `floor` above 0 keeps the step trained from which sampling starts.
    """
    check_prediction(prediction)
    if gamma is None:
        return torch.ones_like(snr)
    if prediction == "epsilon":
        weight = (gamma / snr).clamp(max=1)  # the limit at SNR = 0 included
    elif prediction == "v":
        weight = snr.clamp(max=gamma) / (snr + 1)
    else:
        weight = snr.clamp(max=gamma)
    return weight.clamp(min=floor)


def _expand_to(factor: Tensor, x: Tensor) -> Tensor:
    """(B,) made ready to multiply (B, *), in its dtype and on its device."""
    return factor.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
