"""Circular padding: convolutions continue at the opposite edge of the image, so that generated images tile without a seam.

Such a network commutes with rolling its input, by multiples of its downsampling factor.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.cpu.prepack import M, shallow_copy
from daguerre.nn.encoder_decoder import Decoder, Encoder
from daguerre.nn.resample import Downsample

Axes = Literal["both", "x", "y"]


def circular_padding(network: M, axes: Axes) -> M:
    """A copy of a network, with shared weights, whose convolutions pad circularly along `axes`."""
    return shallow_copy(network, lambda module: _forward(module, axes))


def _forward(module: nn.Module, axes: Axes) -> Callable[..., Tensor] | None:
    """The `forward` of a module with circular padding, or None if it does not change."""
    if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str) and any(module.padding):
        top, left = module.padding
        rest = module.stride, 0, module.dilation, module.groups
        return lambda x: F.conv2d(pad_circular(x, (left, left, top, top), axes), module.weight, module.bias, *rest)
    if isinstance(module, Downsample) and not module.padding:
        return lambda x: module.conv(pad_circular(x, (0, 1, 0, 1), axes))
    return module.forward_full if isinstance(module, Decoder | Encoder) else None  # row chunks would be padded one by one


def pad_circular(x: Tensor, padding: tuple[int, int, int, int], axes: Axes) -> Tensor:
    """Pad x (B, C, H, W) by (left, right, top, bottom) pixels: from its opposite edge along `axes`, with zeros otherwise."""
    left, right, top, bottom = padding
    x = F.pad(x, (left, right, 0, 0), "constant" if axes == "y" else "circular")
    return F.pad(x, (0, 0, top, bottom), "constant" if axes == "x" else "circular")
