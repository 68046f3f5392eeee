"""T2I-Adapter: a small network turns a condition map into features that are added to the downward path of a UNet.

It sees neither the noisy latents nor the timestep, so a run needs it only once (Mou et al. 2023, arXiv:2302.08453, section 3.2).
Parameters have the names of the diffusers folder layout, without its level `adapter`.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Defaults: the full adapter of Stable Diffusion 1.

    map_channels: of the condition map, 1 or 3. factor: pixels of the map for one position of the first feature, in each direction.
    channels: of each feature, one for each level. halved: the features whose size is half that of the one before.
    blocks: residual blocks per feature. light: residual blocks of a quarter of the width, between two projections.
    """

    map_channels: int = 3
    factor: int = 8
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    halved: tuple[bool, ...] = (False, True, True, True)
    blocks: int = 2
    light: bool = False


class T2IResBlock(nn.Module):
    """x + block2(relu(block1(x))), without normalization."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class T2ILevel(nn.Module):
    """Halve the size if asked, project, and apply residual blocks."""

    def __init__(self, in_channels: int, channels: int, config: T2IAdapterConfig, *, halved: bool) -> None:
        super().__init__()
        width = channels // 4 if config.light else channels
        self.halved = halved
        self.in_conv = nn.Conv2d(in_channels, width, 1) if in_channels != width or config.light else None
        self.resnets = nn.ModuleList(T2IResBlock(width, 3 if config.light else 1) for _ in range(config.blocks))
        self.out_conv = nn.Conv2d(width, channels, 1) if config.light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.halved:
            x = F.avg_pool2d(x, 2, ceil_mode=True)  # (B, C, H/2, W/2)
        x = x if self.in_conv is None else self.in_conv(x)  # (B, C', H/2, W/2)
        for block in self.resnets:
            x = block(x)
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapterModel(nn.Module):
    """The features of a condition map."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        width = config.map_channels * config.factor**2
        self.conv_in = None if config.light else nn.Conv2d(width, config.channels[0], 3, padding=1)
        self.body = nn.ModuleList()
        width = width if config.light else config.channels[0]
        for channels, halved in zip(config.channels, config.halved, strict=True):
            self.body.append(T2ILevel(width, channels, config, halved=halved))
            width = channels

    def forward(self, control_map: Tensor) -> list[Tensor]:
        """control_map: (B, map_channels, H, W) in [0, 1], H and W multiples of `factor`. Returns (B, C_i, H_i, W_i) for each level."""
        x = F.pixel_unshuffle(control_map, self.config.factor)  # (B, map_channels·f², H/f, W/f)
        x = x if self.conv_in is None else self.conv_in(x)  # (B, C_0, H/f, W/f)
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return features
