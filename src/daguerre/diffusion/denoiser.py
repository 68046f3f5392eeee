"""Turn a network F into a denoiser: D(x; σ) = c_skip(σ)·x + c_out(σ)·F(x/√(σ²+1), t(σ)), for any prediction type of F.

    epsilon  the noise ε              (Ho et al. 2020, arXiv:2006.11239, eq. 14)
    v        √ᾱ·ε − √(1−ᾱ)·x0         (Salimans & Ho 2022, arXiv:2202.00512, section 4)
    x0       the clean image

Here x = x0 + σ·ε. The input of the network is the variance-preserving √ᾱ·x0 + √(1−ᾱ)·ε, which is x/√(σ²+1).
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
    """A network with its schedule and prediction type.

    dtype: the dtype of the network's input; None means that of x. The result always has the dtype of x.
    rounding: of t, which may lie between two training steps. "none" keeps fractions; diffusers' multistep solvers use "nearest" with the
        karras spacing and "down" with the exponential and beta spacings.
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
            DaguerreError: σ = inf with epsilon prediction, from which x0 cannot be computed there.
        """
        infinite = bool(sigma.isinf())
        if infinite and self.prediction == "epsilon":
            raise DaguerreError(
                "A network with epsilon prediction cannot start at σ = inf; use a finite σ, or train the network with v or x0 prediction."
            )
        t = ROUNDINGS[self.rounding](self.schedule.sigma_to_t(sigma)).to(x.device, torch.float32).expand(len(x))
        x_in = x if infinite else x / (sigma**2 + 1).sqrt()
        output = self.network(x_in.to(self.dtype or x.dtype), t, cond or Conditioning()).to(x.dtype)
        c_skip, c_out = coefficients(self.prediction, sigma)
        return c_skip * x + c_out * output


def coefficients(prediction: Prediction, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of D = c_skip·x + c_out·F; for v and x0 they are the limits at σ = inf."""
    if prediction == "epsilon":
        return torch.ones_like(sigma), -sigma
    if prediction == "v":
        return 1 / (sigma**2 + 1), -1 / (1 + sigma**-2).sqrt()
    return torch.zeros_like(sigma), torch.ones_like(sigma)


def check_prediction(prediction: str) -> None:
    """Raise DaguerreError for an unknown prediction type."""
    if prediction not in PREDICTIONS:
        raise DaguerreError(
            f"Unknown prediction type {prediction!r}; use one of {', '.join(PREDICTIONS)}.{nearest(prediction, PREDICTIONS)}"
        )


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """√ᾱ·x0 + √(1−ᾱ)·ε for images (B, *) and ᾱ (B,): the network's input in training."""
    alpha_bar = alpha_bar.to(x0).reshape(-1, *[1] * (x0.ndim - 1))
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
    """The training target (B, *) for images x0 (B, *), noise eps (B, *) and ᾱ (B,)."""
    check_prediction(prediction)
    if prediction == "epsilon":
        return eps
    if prediction == "x0":
        return x0
    return add_noise(eps, -x0, alpha_bar)


def predicted_x0(prediction: Prediction, output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 (B, *) from a network's output and input x_t = √ᾱ·x0 + √(1−ᾱ)·ε, each (B, *), and ᾱ (B,)."""
    check_prediction(prediction)
    alpha_bar = alpha_bar.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1))
    if prediction == "epsilon":
        return (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    return output if prediction == "x0" else alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output


def training_pair(prediction: Prediction, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """The network's input and target in a training step, each (B, *)."""
    return add_noise(x0, eps, alpha_bar), prediction_target(prediction, x0, eps, alpha_bar)


def loss_weight(prediction: Prediction, snr: Tensor, gamma: float | None = None, *, floor: float = 0.0) -> Tensor:
    """The min-SNR weight (B,) of the squared error at signal-to-noise ratio SNR = ᾱ/(1−ᾱ); 1 if gamma is None.

    The squared error of x0 is weighted by min(SNR, γ) (Hang et al. 2023, arXiv:2303.09556, eq. 6). The squared error of ε is SNR times that
    of x0, and that of v is SNR + 1 times, hence the divisors. At SNR = 0 the weight is 1 for ε and 0 for v and x0; under zero terminal SNR
    a `floor` above 0 makes sure that the step where sampling starts is trained.
    """
    check_prediction(prediction)
    if gamma is None:
        return torch.ones_like(snr)
    if prediction == "epsilon":
        weight = (gamma / snr).clamp(max=1)  # includes the limit at SNR = 0
    elif prediction == "v":
        weight = snr.clamp(max=gamma) / (snr + 1)
    else:
        weight = snr.clamp(max=gamma)
    return weight.clamp(min=floor)
