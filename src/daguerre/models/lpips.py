"""Perceptual distance between images on the features of a network,  d(x, y) = Σ_l mean_hw w_l · (f̂_l(x) − f̂_l(y))².

f̂_l are the features of layer l, scaled to unit length at each position; w_l ≥ 0 are channel weights learned from human judgements.
Zhang et al. 2018, arXiv:1801.03924, eq. 1; on VGG16: Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, D.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.models.clip import VisionTower
from daguerre.nn.encoder_decoder import Encoder

VGG_WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages of VGG16
VGG_CONVOLUTIONS = (2, 2, 3, 3, 3)  # per stage
LENGTH_EPS = 1e-10


def unit_length(features: Tensor) -> Tensor:
    """Scale features (B, C, H, W) to length 1 at each position. Zero features stay zero, with zero gradients."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + LENGTH_EPS)


class ChannelWeights(nn.Module):
    """The learned channel weights of one layer, under the published names (`lin0.model.1.weight`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, difference: Tensor) -> Tensor:
        return self.model(difference)  # (B, 1, H, W)


class LPIPS(nn.Module):
    """The learned perceptual distance on VGG16 features. Frozen.

    The state dict joins the published VGG16 convolutions (`features.0.weight` …) and the five linear layers of LPIPS
    (`lin0.model.1.weight` …). A new instance has random weights: load the published ones.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.taps: list[int] = []
        width = 3
        for i, (out, convolutions) in enumerate(zip(VGG_WIDTHS, VGG_CONVOLUTIONS, strict=True)):
            if i:
                self.features.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                self.features.append(nn.Conv2d(width, out, 3, padding=1)).append(nn.ReLU())
                width = out
            self.taps.append(len(self.features) - 1)
            self.add_module(f"lin{i}", ChannelWeights(out))
        # Channel mean and standard deviation of ImageNet for images in [−1, 1], rounded as in LPIPS.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of images x (B, 3, H, W): each (B, C_i, H/2^i, W/2^i), i = 0 … 4."""
        h, maps = (x - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.taps:
                maps.append(h)
        return maps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) between images x and y, each (B, 3, H, W) in [−1, 1] with sides of at least 16; 0 if equal."""
        distance = x.new_zeros(x.shape[0])
        for i, (a, b) in enumerate(zip(self.feature_maps(x), self.feature_maps(y), strict=True)):
            weighted = self.get_submodule(f"lin{i}")((unit_length(a) - unit_length(b)).square())  # (B, 1, H, W)
            distance = distance + weighted.mean(dim=(1, 2, 3))  # (B,)
        return distance


class FeatureDistance(nn.Module):
    """The same distance with equal channel weights on the features of any network; needs no VGG weights.

    features: images to a sequence of feature maps (B, C, H, W), such as `EncoderFeatures` or `VisionFeatureMaps`. Modules are frozen in
    place.
    """

    def __init__(self, features: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.features = features.requires_grad_(False) if isinstance(features, nn.Module) else features

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) in [0, 4] between images x and y, as the network takes them; 0 if equal."""
        distances = [
            (unit_length(a) - unit_length(b)).square().sum(dim=1).mean(dim=(1, 2))  # (B,)
            for a, b in zip(self.features(x), self.features(y), strict=True)
        ]
        return torch.stack(distances).mean(dim=0)


class EncoderFeatures(nn.Module):
    """The hidden states of an autoencoder's encoder after each level, as features for `FeatureDistance`."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        x, states = self.encoder.conv_in(x), []
        for block in self.encoder.down_blocks:
            x = block(x)
            states.append(x)  # (B, C_i, H/2^(i+1), W/2^(i+1)); the last (B, C, H/f, W/f)
        return states


class VisionFeatureMaps(nn.Module):
    """The patch states after each block of a CLIP vision tower, as features for `FeatureDistance`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, tower: VisionTower, mean: Sequence[float] = (0.5, 0.5, 0.5), deviation: Sequence[float] = (0.5, 0.5, 0.5)) -> None:
        """mean, deviation: channel normalisation of the tower for pixels in [0, 1]. The defaults leave pixels in [−1, 1]."""
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        side = self.tower.shape[-1]
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        states, _ = self.tower(((x + 1) / 2 - self.mean) / self.deviation)
        patches = [state[:, 1:].transpose(1, 2) for state in states[1:]]  # (B, D, N) each, without the class token
        return [patch.unflatten(2, (round(patch.shape[2] ** 0.5), -1)) for patch in patches]  # (B, D, h, w)
