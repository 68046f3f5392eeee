"""ControlNet: a copy of a UNet's encoder that sees a condition map and returns residuals for the skip connections and the middle block.

    h = conv_in(x) + embed(map),   residual_i = zero_conv_i(h_i)

Zhang et al. 2023, arXiv:2302.05543, §3. Parameters have the names of the diffusers folder layout.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.unet import UNetConfig, UNetEncoder

MAP_CHANNELS = (16, 32, 96, 256)


@dataclass(frozen=True)
class ControlNetConfig:
    """unet: of the UNet that it controls; its output is not used.

    map_channels: widths of the layers that read the map; each but the first halves it, down to the size of the latents.
    """

    unet: UNetConfig
    map_channels: tuple[int, ...] = MAP_CHANNELS
    map_in_channels: int = 3


class MapEmbedding(nn.Module):
    """The condition map at the size of the latents in the width of the first features. The last layer is zero-initialised."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.map_channels
        self.conv_in = variance_init(nn.Conv2d(config.map_in_channels, widths[0], 3, padding=1))
        self.blocks = nn.ModuleList()
        for width, following in pairwise(widths):
            self.blocks.append(variance_init(nn.Conv2d(width, width, 3, padding=1)))
            self.blocks.append(variance_init(nn.Conv2d(width, following, 3, stride=2, padding=1)))
        self.conv_out = zero_init(nn.Conv2d(widths[-1], config.unet.channels[0], 3, padding=1))

    def forward(self, control_map: Tensor) -> Tensor:
        """control_map: (B, 3, H, W) in [0, 1]. Returns (B, C_0, H/8, W/8), with 8 = 2^(len(map_channels) − 1)."""
        h = F.silu(self.conv_in(control_map))
        for block in self.blocks:
            h = F.silu(block(h))
        return self.conv_out(h)


class ControlNetModel(UNetEncoder):
    """The residuals of a UNet for a condition map; a new network returns zeros."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config.unet)
        self.controlnet_cond_embedding = MapEmbedding(config)
        self.controlnet_down_blocks = nn.ModuleList(zero_init(nn.Conv2d(width, width, 1)) for width in self.skip_channels)
        self.control_config = config
        self.map_downsampling = 2 ** (len(config.map_channels) - 1)
        middle = config.unet.channels[-1]
        self.controlnet_mid_block = zero_init(nn.Conv2d(middle, middle, 1))

    @classmethod
    def from_unet(cls, unet: UNetEncoder, downsample_factor: int) -> "ControlNetModel":
        """A new ControlNet in float32 that starts from a copy of a UNet's encoder, as the paper does; it returns zeros.

        downsample_factor: image pixels per latent pixel, 2, 4 or 8.

        Raises:
            DaguerreError: there is no ControlNet for such latents.
        """
        levels = downsample_factor.bit_length()
        if downsample_factor < 2 or downsample_factor != 1 << (levels - 1) or levels > len(MAP_CHANNELS):
            raise DaguerreError(f"A ControlNet needs latents of 1/2, 1/4 or 1/8 of the image, not 1/{downsample_factor}.")
        network = cls(ControlNetConfig(unet.config, MAP_CHANNELS[:levels]))
        own, copied = network.state_dict(), unet.state_dict()
        network.load_state_dict({name: copied.get(name, tensor) for name, tensor in own.items()})
        return network

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, control_map: Tensor) -> list[Tensor]:
        """The residuals as `UNet.forward` takes them: one for each skip connection, then one for the middle block.

        Args:
            x, t, cond: as for the UNet.
            control_map: (1 or B, 3, 8H, 8W) in [0, 1] for x (B, C, H, W).

        Raises:
            DaguerreError: a part of the conditioning is missing or has the wrong width.
        """
        self._check(x, cond)
        emb = self._embed(t.expand(len(x)), cond, x.dtype)  # (B, E)
        h = self.conv_in(x) + self.controlnet_cond_embedding(control_map)  # (B, C_0, H, W)
        skips = [h]
        for block in self.down_blocks:
            h = block(h, emb, cond.context, skips)  # (B, C_i, H/2^i, W/2^i)
        h = self.mid_block(h, emb, cond.context)
        residuals = [layer(skip) for layer, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return [*residuals, self.controlnet_mid_block(h)]


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weight and bias zero, so that a new ControlNet changes nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def variance_init(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights of variance 4 / inputs and no bias: SiLU halves small values, so the features vary as much as the map.

    By torch's default, thin lines vary the last features by less than a thousandth, and it takes thousands of steps until the map counts.
    """
    zero_init(layer)
    nn.init.normal_(layer.weight, std=2 / layer.weight[0].numel() ** 0.5)
    return layer
