"""How a map of classes reaches a latent diffusion model: made small, and each place's mixture of classes given a colour of its own.

    c = W · (map halved `stages` times, bilinearly)

(Rombach et al. 2022, arXiv:2112.10752, section 4.3.2: semantic synthesis.)
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SpatialRescalerConfig:
    """The defaults are those of the published models."""

    classes: int = 182
    channels: int = 3  # that stand beside x
    stages: int = 2
    bias: bool = False


class SpatialRescaler(nn.Module):
    """Maps of classes, one channel each (B, classes, H, W), to (B, channels, H/2^stages, W/2^stages)."""

    def __init__(self, config: SpatialRescalerConfig) -> None:
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.classes, config.channels, 1, bias=config.bias)

    def forward(self, shares: Tensor) -> Tensor:
        for _ in range(self.config.stages):
            shares = F.interpolate(shares, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(shares)
