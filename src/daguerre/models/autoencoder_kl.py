"""The autoencoder whose latents diffusion works on: q(z|x) = N(μ(x), σ²(x)), x̂ = decode(z)  (Rombach et al. 2022, arXiv:2112.10752, §3.1).

`encode` returns and `decode` takes scaled latents of about unit variance, z = (latent − shift_factor) · scaling_factor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.nn.encoder_decoder import Decoder, Encoder


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """`channels` lists the width of each level from full resolution down; f = 2^(levels − 1). Defaults: Stable Diffusion 1 and 2."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # residual blocks per level; the decoder has one more
    attention_levels: tuple[int, ...] = ()
    mid_attention: bool = True
    norm_groups: int = 32
    quant_conv: bool = True  # 1×1 convolution after the encoder
    post_quant_conv: bool = True  # 1×1 convolution before the decoder
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0


VAE_SD = AutoencoderKLConfig()
VAE_SDXL = replace(VAE_SD, scaling_factor=0.13025)
VAE_UPSCALER = replace(VAE_SD, channels=(128, 256, 512), scaling_factor=0.08333)
KL_F16 = replace(VAE_SD, latent_channels=16, channels=(128, 128, 256, 256, 512), attention_levels=(4,), scaling_factor=1.0)


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z|x) as a diagonal Gaussian over unscaled latents; mean and logvar are (B, Z, h, w)."""

    mean: Tensor
    logvar: Tensor  # in [−30, 20]

    def sample(self, noise: Tensor) -> Tensor:
        """mean + σ · noise, (B, Z, h, w); noise is standard normal of the same shape."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL(q ‖ N(0, 1)) in nats, summed over the latent of each image: (B,). Kingma and Welling 2014, arXiv:1312.6114, appendix B."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(dim=1)  # (B,)


class AutoencoderKL(nn.Module):
    """Encodes images x (B, 3, H, W) in [−1, 1] to latents (B, Z, H/f, W/f) and decodes them."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        shape = {"attention_levels": config.attention_levels, "mid_attention": config.mid_attention, "groups": config.norm_groups}
        Z = config.latent_channels
        self.encoder = Encoder(config.in_channels, 2 * Z, config.channels, config.blocks, **shape)
        self.decoder = Decoder(Z, config.out_channels, config.channels, config.blocks, **shape)
        self.quant_conv = nn.Conv2d(2 * Z, 2 * Z, 1) if config.quant_conv else None
        self.post_quant_conv = nn.Conv2d(Z, Z, 1) if config.post_quant_conv else None

    @property
    def downsample_factor(self) -> int:
        """f: image side / latent side."""
        return 2 ** (len(self.config.channels) - 1)

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """The unscaled posterior of images x (B, 3, H, W). Raises DaguerreError if a side is not a multiple of f."""
        check_sides(x, self.downsample_factor)
        h = self.encoder(x)  # (B, 2Z, H/f, W/f)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        mean, logvar = h.chunk(2, dim=1)  # each (B, Z, H/f, W/f)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents z of images x: a posterior sample with `noise` (B, Z, H/f, W/f), or without noise the posterior mean."""
        posterior = self.posterior(x)
        latent = posterior.mean if noise is None else posterior.sample(noise)
        return (latent - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents z (B, Z, H/f, W/f) to images (B, 3, H, W), about [−1, 1] and not clamped."""
        latent = z / self.config.scaling_factor + self.config.shift_factor
        return self.decoder(latent if self.post_quant_conv is None else self.post_quant_conv(latent))

    def forward(
        self, x: Tensor, noise: Tensor | None = None, latent_transform: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, DiagonalGaussian]:
        """For training: reconstruction (B, 3, H, W) and posterior. `latent_transform` changes the latent before decoding."""
        posterior = self.posterior(x)
        latent = posterior.mean if noise is None else posterior.sample(noise)
        latent = latent if latent_transform is None else latent_transform(latent)
        return self.decoder(latent if self.post_quant_conv is None else self.post_quant_conv(latent)), posterior

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile encoder and decoder separately, so that a new `latent_transform` does not trigger a recompilation."""
        self.encoder.compile(*args, **options)
        self.decoder.compile(*args, **options)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight; the adaptive adversarial weight is computed from its gradients (Esser et al. 2021, eq. 7)."""
        return self.decoder.conv_out.weight


def check_sides(x: Tensor, f: int) -> None:
    """Raise DaguerreError unless both sides of images x (B, C, H, W) are multiples of f."""
    H, W = x.shape[-2:]
    if H % f or W % f:
        raise DaguerreError(f"The image is {W}×{H}; for this autoencoder both sides must be multiples of {f}. Resize or crop it.")
