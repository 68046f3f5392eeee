"""The variance of the reverse process, p(x_{t−1} | x_t) = N(μ, σ²_t), as a network learns it.

The network's output has 2C channels: the C of its prediction, then a fraction v in about [−1, 1] that interpolates between the two fixed
variances, log σ² = f·log β + (1 − f)·log β̃ with f = (v + 1)/2 (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15).
"""

from typing import Literal

from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import NetworkFn
from daguerre.errors import DaguerreError

Variance = Literal["small", "large", "learned"]  # β̃, β, or the network's own
VARIANCES: tuple[Variance, ...] = ("small", "large", "learned")


def split_variance(output: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction and the fraction f of an output (B, 2C, *), each (B, C, *)."""
    prediction, v = output.chunk(2, dim=1)
    return prediction, (v + 1) / 2


class LearnedVariance:
    """A network of 2C output channels as one of C channels; the fraction f of its last call stays available for the sampler's step."""

    def __init__(self, network: NetworkFn) -> None:
        self._network = network
        self._fraction: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        prediction, self._fraction = split_variance(self._network(x, t, cond))
        return prediction

    def fraction(self, batch: int) -> Tensor:
        """f (batch, C, *) of the last call; with several conditions per image, that of the first, the prompt's.

        Raises:
            DaguerreError: the network has not been called yet.
        """
        if self._fraction is None:
            raise DaguerreError("The learned variance is known only after a call of the network.")
        return self._fraction[:batch]
