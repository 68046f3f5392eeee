"""Convolutions whose picture is a torus: the left edge continues at the right one, and the upper at the lower.

A network of such convolutions commutes with rolling its input (by multiples of what it downsamples), so what it makes tiles without a seam.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.cpu.module_view import M, shallow_copy
from daguerre.nn.encoder_decoder import Decoder, Encoder
from daguerre.nn.resample import Downsample, Upsample

Axes = Literal["both", "x", "y"]


def circular_padding(network: M, axes: Axes) -> M:
    """A twin of a network that pads its convolutions circularly along `axes`."""
    return shallow_copy(network, lambda module: _forward(module, axes))


def _forward(module: nn.Module, axes: Axes) -> Callable[..., Tensor] | None:
    """What a module does on a torus, None where that is what it does anyway."""
    if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str) and any(module.padding):
        top, left = module.padding
        rest = module.stride, 0, module.dilation, module.groups
        return lambda x: F.conv2d(pad_circular(x, (left, left, top, top), axes), module.weight, module.bias, *rest)
    if isinstance(module, Downsample) and not module.padding:
        return lambda x: module.conv(pad_circular(x, (0, 1, 0, 1), axes))
    if isinstance(module, Decoder | Encoder):  # which otherwise show their convolutions some rows of a map alone
        return module.forward_full
    if isinstance(module, Upsample):  # which otherwise goes past its convolution
        return lambda x, size=None: module.conv(F.interpolate(x, size=size or [2 * side for side in x.shape[-2:]]))
    return None


def pad_circular(x: Tensor, padding: tuple[int, int, int, int], axes: Axes) -> Tensor:
    """x (B, C, H, W) padded by (left, right, top, bottom) places: with its other edge along `axes`, with zeros along the rest."""
    left, right, top, bottom = padding
    x = F.pad(x, (left, right, 0, 0), "constant" if axes == "y" else "circular")
    return F.pad(x, (0, 0, top, bottom), "constant" if axes == "x" else "circular")
