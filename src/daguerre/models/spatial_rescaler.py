"""Encodes a segmentation map for a latent diffusion model: downsample the class map and project it to a few channels.

    c = W · (map halved `stages` times, bilinearly)

(Rombach et al. 2022, arXiv:2112.10752, section 4.3.2: semantic synthesis.)
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SpatialRescalerConfig:
    """Defaults: the published semantic synthesis models."""

    classes: int = 182
    channels: int = 3  # concatenated to x
    stages: int = 2
    bias: bool = False


class SpatialRescaler(nn.Module):
    """Class maps (B, classes, H, W), one channel per class, to (B, channels, H/2^stages, W/2^stages)."""

    def __init__(self, config: SpatialRescalerConfig) -> None:
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.classes, config.channels, 1, bias=config.bias)

    def forward(self, classes: Tensor) -> Tensor:
        for _ in range(self.config.stages):
            classes = F.interpolate(classes, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(classes)
