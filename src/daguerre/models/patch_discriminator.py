"""PatchGAN: a convolutional discriminator that classifies each patch of the image (Isola et al. 2017, arXiv:1611.07004, §3.2)."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class PatchDiscriminatorConfig:
    """layers: number of strided convolutions; each doubles the channels, up to 8 · `channels`."""

    in_channels: int = 3
    channels: int = 64
    layers: int = 3


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) to logits (B, 1, h, w), high for real images; h ≈ H / 2^layers. Initial weights are N(0, 0.02²)."""

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(config.in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, config.layers + 1):
            stride = 2 if i < config.layers else 1
            # No bias: the batch norm has its own.
            parts += [nn.Conv2d(widths[i - 1], widths[i], 4, stride, padding=1, bias=False), nn.BatchNorm2d(widths[i]), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)  # (B, 1, h, w)
