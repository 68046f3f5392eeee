"""TAESD: a small convolutional autoencoder with the latents of a large one, for previews and fast decoding (Ollin Boer Bohan 2023,
github.com/madebyollin/taesd).

Only convolutions and ReLU: a tenth of the work of the decoder that it was distilled from, and softer details. The layers have the numbers
of the published files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from daguerre.models.latent_diffusion import Autoencoder

LATENT_LIMIT = 3.0  # latents are squashed to ±this, so that wrong ones do not give arbitrary colours


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Defaults: TAESD for Stable Diffusion 1, 2 and XL, which differ only in their weights. f = 2^levels."""

    latent_channels: int = 4
    width: int = 64
    blocks: int = 3  # residual blocks per level
    levels: int = 3


class TinyBlock(nn.Module):
    """relu(skip(x) + conv(relu(conv(relu(conv(x)))))), (B, C, H, W) to the same shape."""

    checkpointed = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


class SoftClamp(nn.Module):
    """3·tanh(z/3)."""

    def forward(self, z: Tensor) -> Tensor:
        return (z / LATENT_LIMIT).tanh() * LATENT_LIMIT


class TinyDecoder(nn.Sequential):
    """Scaled latents z (B, Z, h, w) to images (B, 3, f·h, f·w) in about [−1, 1]."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        width = config.width
        layers: list[nn.Module] = [SoftClamp(), _conv(config.latent_channels, width), nn.ReLU()]
        for _ in range(config.levels):
            layers += [*_blocks(width, config.blocks), nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
        super().__init__(*layers, TinyBlock(width), _conv(width, 3))
        self.config = config

    def forward(self, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # it has another name
        return super().forward(z) * 2 - 1


class TinyEncoder(nn.Sequential):
    """Images x (B, 3, H, W) in [−1, 1] to scaled latents (B, Z, H/f, W/f)."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        width = config.width
        layers: list[nn.Module] = [_conv(3, width), TinyBlock(width)]
        for _ in range(config.levels):
            layers += [_conv(width, width, stride=2, bias=False), *_blocks(width, config.blocks)]
        super().__init__(*layers, _conv(width, config.latent_channels))

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # it has another name
        return super().forward((x + 1) / 2)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latents, without noise: this encoder has no posterior to sample."""
        return self(x)


class TinyAutoencoder(nn.Module):
    """A tiny decoder with its own encoder, or with the autoencoder that it was distilled from, which then encodes."""

    def __init__(self, decoder: TinyDecoder, encoder: TinyEncoder | Autoencoder) -> None:
        super().__init__()
        self.decoder, self.encoder = decoder, encoder

    @property
    def downsample_factor(self) -> int:
        """f: image side / latent side."""
        return 2**self.decoder.config.levels

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents (B, Z, H/f, W/f) of images x (B, 3, H, W) in [−1, 1]."""
        return self.encoder.encode(x, noise)

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [−1, 1] and not clamped, of scaled latents z (B, Z, H/f, W/f)."""
        return self.decoder(z)


def _conv(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


def _blocks(width: int, count: int) -> Sequence[TinyBlock]:
    return [TinyBlock(width) for _ in range(count)]
