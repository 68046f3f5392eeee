"""Inception v3 as the Fréchet inception distance uses it: the graph of 2015-12-05, whose features are the means of its last layer.

Szegedy et al. 2015, arXiv:1512.00567, section 6; Heusel et al. 2017, arXiv:1706.08500. Published weights have the parameter names below.
The graph differs from the paper: average pooling does not count the padding, and the last block has max pooling instead of average pooling.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INCEPTION_SIDE = 299  # pixels
INCEPTION_CLASSES = 1008
BATCH_NORM_EPS = 1e-3  # of the batch norms


class Conv(NamedTuple):
    """One convolution with its batch norm; with stride 1 it keeps the size, with stride 2 it has no padding."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


InceptionBranch = Sequence[Conv | tuple[Conv, ...]]  # a tuple of convolutions has the same input; their outputs are concatenated
average_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
max_pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halving_pool = partial(F.max_pool2d, kernel_size=3, stride=2)


class BlockConfig(NamedTuple):
    """Branches with the same input, whose outputs are concatenated; the last one is a pooling with a convolution of `pool_width`, or 0."""

    branches: Sequence[InceptionBranch]
    pool: Callable[[Tensor], Tensor]
    pool_width: int = 0


def _block_a(pool_width: int) -> BlockConfig:
    five = Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))
    three = Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))
    return BlockConfig([[Conv("branch1x1", 64)], five, three], average_pool, pool_width)


def _block_b() -> BlockConfig:
    double = Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)
    return BlockConfig([[Conv("branch3x3", 384, (3, 3), 2)], double], halving_pool)


def _block_c(width: int) -> BlockConfig:
    seven = Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1))
    kernels = ((1, 1), (7, 1), (1, 7), (7, 1), (1, 7))
    double = [Conv(f"branch7x7dbl_{i}", 192 if i == 5 else width, kernel) for i, kernel in enumerate(kernels, 1)]
    return BlockConfig([[Conv("branch1x1", 192)], seven, double], average_pool, 192)


def _block_d() -> BlockConfig:
    seven = Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1))
    return BlockConfig(
        [[Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)], [*seven, Conv("branch7x7x3_4", 192, (3, 3), 2)]], halving_pool
    )


def _block_e(pool: Callable[[Tensor], Tensor]) -> BlockConfig:
    def split(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    three = Conv("branch3x3_1", 384), split("branch3x3_2")
    double = Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), split("branch3x3dbl_3")
    return BlockConfig([[Conv("branch1x1", 320)], three, double], pool, 192)


INCEPTION_STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, (3, 3)),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3)),
)
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")  # although their stride is 1
HALVED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
INCEPTION_BLOCKS = {
    "Mixed_5b": _block_a(32), "Mixed_5c": _block_a(64), "Mixed_5d": _block_a(64), "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128), "Mixed_6c": _block_c(160), "Mixed_6d": _block_c(160), "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(), "Mixed_7b": _block_e(average_pool), "Mixed_7c": _block_e(max_pool),
}  # fmt: skip


class FixedBatchNorm(nn.Module):
    """Batch norm with given statistics."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.get_buffer("running_mean"), self.get_buffer("running_var"), self.weight, self.bias, eps=BATCH_NORM_EPS)


class ConvNormReLU(nn.Module):
    def __init__(self, channels: int, config: Conv, *, padded: bool = True):
        super().__init__()
        keeps_size = padded and config.stride == 1
        padding = (config.kernel[0] // 2, config.kernel[1] // 2) if keeps_size else (0, 0)
        self.conv = nn.Conv2d(channels, config.width, config.kernel, config.stride, padding, bias=False)
        self.bn = FixedBatchNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class InceptionBlock(nn.Module):
    """A block (B, C, H, W) -> (B, `width`, H', W')."""

    def __init__(self, channels: int, config: BlockConfig):
        super().__init__()
        self.config = config
        self.width = config.pool_width or channels
        for branch in config.branches:
            inner = channels
            for step in branch:
                convs = step if not isinstance(step, Conv) else (step,)
                for conv in convs:
                    self.add_module(conv.name, ConvNormReLU(inner, conv))
                inner = sum(conv.width for conv in convs)
            self.width += inner
        if config.pool_width:
            self.branch_pool = ConvNormReLU(channels, Conv("branch_pool", config.pool_width))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self._branch(branch, x) for branch in self.config.branches]
        pooled = self.config.pool(x)
        return torch.cat([*outputs, self.branch_pool(pooled) if self.config.pool_width else pooled], dim=1)

    def _branch(self, branch: InceptionBranch, x: Tensor) -> Tensor:
        for step in branch:
            convs = step if not isinstance(step, Conv) else (step,)
            x = torch.cat([self.get_submodule(conv.name)(x) for conv in convs], dim=1)
        return x


class Inception(nn.Module):
    """The features (B, 2048) of images x (B, 3, H, W) in [−1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for conv in INCEPTION_STEM:
            self.add_module(conv.name, ConvNormReLU(channels, conv, padded=conv.name not in UNPADDED))
            channels = conv.width
        for name, config in INCEPTION_BLOCKS.items():
            block = InceptionBlock(channels, config)
            self.add_module(name, block)
            channels = block.width
        self.fc = nn.Linear(channels, INCEPTION_CLASSES, bias=False)

    def class_logits(self, features: Tensor) -> Tensor:
        """The logits (B, 1008) of features (B, 2048), without the bias, as the Inception score has them."""
        return self.fc(features)

    def forward(self, x: Tensor) -> Tensor:
        x = (resize_like_tensorflow(x, INCEPTION_SIDE) + 1) * (255 / 256) - 1  # the graph divides bytes by 128 and subtracts 1
        for conv in INCEPTION_STEM:
            x = self.get_submodule(conv.name)(x)
            if conv.name in HALVED_AFTER:
                x = halving_pool(x)
        for name in INCEPTION_BLOCKS:
            x = self.get_submodule(name)(x)  # (B, 2048, 8, 8) at the end
        return x.mean(dim=(2, 3))


def resize_like_tensorflow(x: Tensor, side: int) -> Tensor:
    """Bilinear resize (B, C, H, W) -> (B, C, side, side) as TensorFlow 1: output i is at input position i·H/side, without antialiasing."""
    for dim in (-2, -1):
        size = x.shape[dim]
        position = torch.arange(side, dtype=torch.float64) * (size / side)
        lower = position.floor().long()
        share = (position - lower).to(x.device, x.dtype)
        share = share if dim == -1 else share[:, None]
        before, after = (x.index_select(dim, index.to(x.device)) for index in (lower, (lower + 1).clamp(max=size - 1)))
        x = before + (after - before) * share
    return x
