"""The autoencoder whose latent is a grid of codes: x̂ = decode(e_k),  k = codes(x)  (VQ-VAE: van den Oord et al. 2017, arXiv:1711.00937).

With an adversarial loss it is VQGAN's first stage (Esser et al. 2021, arXiv:2012.09841, section 3.1 and table 7), and with few channels the
first stage of many latent diffusion models (Rombach et al. 2022, arXiv:2112.10752, appendix D.1): those diffuse what comes before the
codebook, and look the nearest codes up when they decode. Here `encode` and `decode` speak of that; `codes` and `decode_codes` of codes.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.vector_quantizer import QuantizerConfig, build_quantizer
from daguerre.nn.encoder_decoder import Decoder, Encoder


@dataclass(frozen=True)
class VQModelConfig:
    """channels: of each level from full resolution down; f = 2^(levels − 1). The defaults are VQGAN's f16 with 1024 codes.

    latent_channels: of encoder and decoder; the codebook's own width is the quantizer's, between two 1×1 convolutions.
    """

    quantizer: QuantizerConfig = QuantizerConfig()
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 256
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    attention_levels: tuple[int, ...] = (4,)
    mid_attention: bool = True
    norm_groups: int = 32
    scaling_factor: float = 1.0


VQGAN_F16_1024 = VQModelConfig()
VQGAN_F16_8192 = replace(VQGAN_F16_1024, quantizer=QuantizerConfig(codes=8192))
VQGAN_F16_16384 = replace(VQGAN_F16_1024, quantizer=QuantizerConfig(codes=16384))
GUMBEL_F8 = replace(
    VQGAN_F16_1024,
    quantizer=QuantizerConfig(codes=8192, kind="gumbel"),
    channels=(128, 128, 256, 512),
    attention_levels=(3,),
)
VQ_F4 = VQModelConfig(QuantizerConfig(codes=8192, width=3), latent_channels=3, channels=(128, 256, 512), attention_levels=())
VQ_F4_PLAIN = replace(VQ_F4, mid_attention=False)  # of the inpainting model: no attention at all, so any size costs what it should
VQ_F8 = VQModelConfig(QuantizerConfig(codes=16384, width=4), latent_channels=4, channels=(128, 256, 256, 512), attention_levels=(3,))
VQ_F8_256 = replace(VQ_F8, quantizer=QuantizerConfig(codes=256, width=4))
VQ_F16 = VQModelConfig(QuantizerConfig(codes=16384, width=8), latent_channels=8)


class VQOutput(NamedTuple):
    """x: the reconstruction (B, 3, H, W); codes (B, h, w) int64; loss: the quantizer's, ()."""

    x: Tensor
    codes: Tensor
    loss: Tensor


class VQModel(nn.Module):
    """Pictures x in [−1, 1], (B, 3, H, W), to codes (B, H/f, W/f) and back."""

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
        """f: how many times smaller than the picture the grid of codes is, on a side."""
        return 2 ** (len(self.config.channels) - 1)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """What comes before the codebook, scaled: (B, D, H/f, W/f). There is nothing random in it; `noise` is for autoencoders that draw.

        Raises:
            DaguerreError: a side is not a multiple of f.
        """
        return self._before(x) * self.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [−1, 1] and not clamped, of scaled latents z (B, D, h, w): the nearest codes are decoded."""
        return self.decode_codes(self.quantize.nearest(z / self.config.scaling_factor))

    def encode_codes(self, x: Tensor) -> Tensor:
        """The codes (B, H/f, W/f) int64 of pictures x. Raises DaguerreError where a side is not a multiple of f."""
        return self.quantize.nearest(self._before(x))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of codes (B, h, w). Raises DaguerreError for a code beyond the codebook."""
        return self.decoder(self.post_quant_conv(self.quantize.lookup(codes)))

    def forward(self, x: Tensor, quantized: bool = True) -> VQOutput:
        """For training: x through the codebook and back, with gradients; or past the codebook, which is then only asked for the codes."""
        before = self._before(x)
        if not quantized:
            zero = torch.stack([0 * each.sum() for each in self.quantize.parameters()]).sum()  # processes that train together miss none
            return VQOutput(self.decoder(self.post_quant_conv(before)), self.quantize.nearest(before), zero)
        z, codes, loss = self.quantize(before)
        return VQOutput(self.decoder(self.post_quant_conv(z)), codes, loss)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, where the adversarial loss is balanced against the others (Esser et al. 2021, eq. 7)."""
        return self.decoder.conv_out.weight

    def _before(self, x: Tensor) -> Tensor:
        f = self.downsample_factor
        if x.shape[-2] % f or x.shape[-1] % f:
            raise DaguerreError(
                f"The picture is {x.shape[-1]}×{x.shape[-2]}; for this autoencoder both sides must be multiples of {f}. Resize or crop it."
            )
        return self.quant_conv(self.encoder(x))  # (B, D, H/f, W/f)
