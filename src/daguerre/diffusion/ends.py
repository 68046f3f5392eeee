"""How a sampling run begins and ends. Samplers work with x = x0 + σ·ε; training and the autoencoder know √ᾱ·x0 + √(1−ᾱ)·ε = x/√(σ²+1)."""

from typing import Literal

from torch import Tensor

InitialScale = Literal["variance_preserving", "sigma_max"]


def scale_initial_noise(noise: Tensor, sigma: Tensor, scale: InitialScale = "variance_preserving") -> Tensor:
    """x to begin with at σ, (B, *), from standard normal noise (B, *).

    scale: "variance_preserving" is √(σ²+1)·ε, which the network sees as ε itself, as in the last step of training; "sigma_max" is σ·ε, as
        k-diffusion and some of diffusers' schedulers begin. At σ = 14.6 they differ by 0.2 %, at σ = inf (both ε) not at all.
    """
    if sigma.isinf():
        return noise
    return noise * ((sigma**2 + 1).sqrt() if scale == "variance_preserving" else sigma)


def to_variance_preserving(x: Tensor, sigma: Tensor) -> Tensor:
    """The picture or latent at the last σ, (B, *): x/√(σ²+1), so nothing changes where the grid ends in 0. Stable Diffusion 1's own
    configuration ends at its least σ, and leaves that noise in."""
    return x / (sigma**2 + 1).sqrt()
