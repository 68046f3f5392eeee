"""The autoencoder of a diffusion model in pixel space (Ho et al. 2020, arXiv:2006.11239): latents are the pixels themselves, z = x."""

from torch import Tensor, nn


class IdentityAutoencoder(nn.Module):
    """Returns images x (B, C, H, W) in [−1, 1] unchanged, so that a model of pixels is a `LatentDiffusion` like any other."""

    @property
    def downsample_factor(self) -> int:
        return 1

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The images themselves; `noise` is ignored (`AutoencoderKL.encode` uses it)."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """The images themselves."""
        return z
