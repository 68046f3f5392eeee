"""The autoencoder whose latent is a grid of codes: k = encode_codes(x),  x̂ = decode_codes(k).

VQ-VAE: van den Oord et al. 2017, arXiv:1711.00937. With an adversarial loss this is the first stage of VQGAN (Esser et al. 2021,
arXiv:2012.09841, section 3.1 and table 7), with few channels that of many latent diffusion models (Rombach et al. 2022, arXiv:2112.10752,
appendix D.1). Those diffuse the continuous latent before quantization: `encode` returns it, and `decode` quantizes it first.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from daguerre.models.autoencoder_kl import check_sides
from daguerre.models.vector_quantizer import QuantizerConfig, build_quantizer
from daguerre.nn.encoder_decoder import Decoder, Encoder


@dataclass(frozen=True)
class VQModelConfig:
    """`channels` lists the width of each level from full resolution down; f = 2^(levels − 1). Defaults: VQGAN f16 with 1024 codes.

    latent_channels: encoder output and decoder input. Two 1×1 convolutions convert between it and the codebook width `quantizer.width`.
    """

    quantizer: QuantizerConfig = QuantizerConfig()
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 256
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2  # residual blocks per level; the decoder has one more
    attention_levels: tuple[int, ...] = (4,)
    mid_attention: bool = True
    norm_groups: int = 32
    scaling_factor: float = 1.0


VQGAN_F16_1024 = VQModelConfig()
VQ_F4 = VQModelConfig(QuantizerConfig(codes=8192, width=3), latent_channels=3, channels=(128, 256, 512), attention_levels=())


class VQOutput(NamedTuple):
    """x: the reconstruction (B, 3, H, W); codes (B, h, w) int64; loss: the quantizer's, ()."""

    x: Tensor
    codes: Tensor
    loss: Tensor


class VQModel(nn.Module):
    """Encodes images x (B, 3, H, W) in [−1, 1] to codes (B, H/f, W/f) and decodes them."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        self.config = config
        shape = {"attention_levels": config.attention_levels, "mid_attention": config.mid_attention, "groups": config.norm_groups}
        Z, D = config.latent_channels, config.quantizer.width
        self.encoder = Encoder(config.in_channels, Z, config.channels, config.blocks, **shape)
        self.quant_conv = nn.Conv2d(Z, D, 1)
        self.quantize = build_quantizer(config.quantizer)
        self.post_quant_conv = nn.Conv2d(D, Z, 1)
        self.decoder = Decoder(Z, config.out_channels, config.channels, config.blocks, **shape)

    @property
    def downsample_factor(self) -> int:
        """f: image side / code grid side."""
        return 2 ** (len(self.config.channels) - 1)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents before quantization (B, D, H/f, W/f). Deterministic: `noise` is ignored (`AutoencoderKL.encode` uses it).

        Raises:
            DaguerreError: a side is not a multiple of f.
        """
        return self._pre_quantized(x) * self.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Quantize scaled latents z (B, D, h, w) and decode them to images (B, 3, H, W), about [−1, 1] and not clamped."""
        return self.decode_codes(self.quantize.nearest(z / self.config.scaling_factor))

    def encode_codes(self, x: Tensor) -> Tensor:
        """Codes (B, H/f, W/f) int64 of images x. Raises DaguerreError if a side is not a multiple of f."""
        return self.quantize.nearest(self._pre_quantized(x))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w) to images (B, 3, H, W). Raises DaguerreError for a code outside the codebook."""
        return self.decoder(self.post_quant_conv(self.quantize.lookup(codes)))

    def forward(self, x: Tensor, quantized: bool = True) -> VQOutput:
        """For training: reconstruct x with gradients; with `quantized=False` decode the continuous latent and only report its codes."""
        z_e = self._pre_quantized(x)  # (B, D, h, w)
        if not quantized:
            # So that every parameter has a gradient in distributed training.
            zero = torch.stack([0 * each.sum() for each in self.quantize.parameters()]).sum()
            return VQOutput(self.decoder(self.post_quant_conv(z_e)), self.quantize.nearest(z_e), zero)
        z, codes, loss = self.quantize(z_e)
        return VQOutput(self.decoder(self.post_quant_conv(z)), codes, loss)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight; the adaptive adversarial weight is computed from its gradients (Esser et al. 2021, eq. 7)."""
        return self.decoder.conv_out.weight

    def _pre_quantized(self, x: Tensor) -> Tensor:
        check_sides(x, self.downsample_factor)
        return self.quant_conv(self.encoder(x))  # (B, D, H/f, W/f)
