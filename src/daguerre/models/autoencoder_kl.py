"""The autoencoder whose latents diffusion works on: q(z|x) = N(μ(x), σ²(x)), x̂ = decode(z)  (Rombach et al. 2022, arXiv:2112.10752, §3.1).

Diffusion sees scaled latents of about unit variance, z = (latent − shift_factor) · scaling_factor; `encode` and `decode` speak of those.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.nn.encoder_decoder import Decoder, Encoder


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """channels: of each level from full resolution down; f = 2^(levels − 1). The defaults are Stable Diffusion 1 and 2's."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    attention_levels: tuple[int, ...] = ()
    mid_attention: bool = True
    norm_groups: int = 32
    quant_conv: bool = True  # a 1×1 convolution between encoder and moments
    post_quant_conv: bool = True  # and one between latent and decoder
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0


VAE_SD = AutoencoderKLConfig()
VAE_SDXL = replace(VAE_SD, scaling_factor=0.13025)
VAE_UPSCALER = replace(VAE_SD, channels=(128, 256, 512), scaling_factor=0.08333)
KL_F4 = replace(VAE_SD, latent_channels=3, channels=(128, 256, 512), scaling_factor=1.0)
KL_F8 = replace(VAE_SD, scaling_factor=1.0)
KL_F16 = replace(VAE_SD, latent_channels=16, channels=(128, 128, 256, 256, 512), attention_levels=(4,), scaling_factor=1.0)
KL_F32 = replace(VAE_SD, latent_channels=64, channels=(128, 128, 256, 256, 512, 512), attention_levels=(4, 5), scaling_factor=1.0)


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z|x) as a diagonal Gaussian over unscaled latents; mean and logvar are (B, Z, h, w)."""

    mean: Tensor
    logvar: Tensor  # in [−30, 20]

    def sample(self, noise: Tensor) -> Tensor:
        """mean + σ · noise, (B, Z, h, w); noise is standard normal of the same shape."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL(q ‖ N(0, 1)) in nats, summed over each picture's latent: (B,). Kingma and Welling 2014, arXiv:1312.6114, appendix B."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(dim=1)  # (B,)


class AutoencoderKL(nn.Module):
    """Pictures x in [−1, 1], (B, 3, H, W), to latents (B, Z, H/f, W/f) and back."""

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
        """f: how many times smaller than the picture the latent is, on a side."""
        return 2 ** (len(self.config.channels) - 1)

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """The posterior of pictures x (B, 3, H, W), unscaled. Raises DaguerreError where a side is not a multiple of f."""
        f = self.downsample_factor
        if x.shape[-2] % f or x.shape[-1] % f:
            raise DaguerreError(
                f"The picture is {x.shape[-1]}×{x.shape[-2]}; for this autoencoder both sides must be multiples of {f}. Resize or crop it."
            )
        h = self.encoder(x)  # (B, 2Z, H/f, W/f)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        mean, logvar = h.chunk(2, dim=1)  # each (B, Z, H/f, W/f)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latent z of pictures x: a draw of the posterior with this noise (B, Z, H/f, W/f), or its mean where there is none."""
        posterior = self.posterior(x)
        latent = posterior.mean if noise is None else posterior.sample(noise)
        return (latent - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [−1, 1] and not clamped, of scaled latents z (B, Z, H/f, W/f)."""
        latent = z / self.config.scaling_factor + self.config.shift_factor
        return self.decoder(latent if self.post_quant_conv is None else self.post_quant_conv(latent))

    def forward(
        self, x: Tensor, noise: Tensor | None = None, latent_transform: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, DiagonalGaussian]:
        """Reconstruction (B, 3, H, W) and posterior, for training; noise as in `encode`, `between` changes the latent before decoding."""
        posterior = self.posterior(x)
        latent = posterior.mean if noise is None else posterior.sample(noise)
        latent = latent if latent_transform is None else latent_transform(latent)
        return self.decoder(latent if self.post_quant_conv is None else self.post_quant_conv(latent)), posterior

    def compile(self, *args: Any, **options: Any) -> None:
        """Encoder and decoder by themselves, so that what training does to a latent between them is not compiled anew for each change."""
        self.encoder.compile(*args, **options)
        self.decoder.compile(*args, **options)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, where the adversarial loss is balanced against the others (Esser et al. 2021, eq. 7)."""
        return self.decoder.conv_out.weight
