"""Convolutional networks over large maps with little memory: some rows at a time, results written over what was read.

A norm and its activation are applied to the rows that the convolution behind it reads, so that what is between them is never whole; a
residual block keeps its input and one map beside it. Without gradients only, as the inputs are gone afterwards.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.blocks import DownBlock, UpBlock
from daguerre.nn.resample import Upsample
from daguerre.nn.resblock import ResBlock

CHUNK_ELEMENTS = 1 << 22  # elements of a map that are worked on at a time; much more, and memory is fetched anew for every part
Place = tuple[slice, slice, slice]  # some rows of one picture, all channels


def should_chunk(channels: int, places: int) -> bool:
    """Whether to go by rows through a network whose largest map of one picture has so many elements; smaller ones are quicker whole."""
    return not torch.is_grad_enabled() and channels * places > CHUNK_ELEMENTS


def level_inplace(block: nn.Module, x: Tensor) -> Tensor:
    """block(x) for a level of an autoencoder; x as for `resblock_`, and so is the answer."""
    assert isinstance(block, DownBlock | UpBlock)
    for i, resnet in enumerate(block.resnets):
        assert isinstance(resnet, ResBlock)
        x = resblock_inplace(resnet, x)
        if block.attentions:
            x = block.attentions[i](x)
    if isinstance(block, UpBlock):
        for upsampler in block.upsamplers:
            assert isinstance(upsampler, Upsample)
            x = upsample_chunked(upsampler, x)
    else:
        for downsampler in block.downsamplers:
            x = downsampler(x)
    return x.contiguous(memory_format=torch.channels_last)


def resblock_inplace(block: ResBlock, x: Tensor) -> Tensor:
    """block(x) for a block without embedding and resampling; x (B, C, H, W), channels last, is overwritten and may become the answer."""
    h = norm_conv(block.norm1, block.conv1, x, empty_feature_map(x, block.conv1.out_channels))
    shortcut = block.conv_shortcut or nn.Identity()
    out = view_as_smaller(x, h.shape) if h.shape[1] <= x.shape[1] else torch.empty_like(h)
    return norm_conv(block.norm2, block.conv2, h, out, lambda place: shortcut(x[place]))


def norm_conv(norm: nn.GroupNorm, conv: nn.Module, x: Tensor, out: Tensor, plus: Callable[[Place], Tensor] | None = None) -> Tensor:
    """conv(silu(norm(x))) for x (B, C, H, W) and a 3×3 convolution, written to `out` (B, C_out, H, W), with what `plus` gives for some
    rows of a picture added to it."""
    for i in range(len(x)):
        one = x[i : i + 1]
        mean, variance = group_moments(norm, one)
        scale, shift = norm.weight.float(), norm.bias.float()
        for rows, around, inner in row_chunks(one):
            y = F.batch_norm(one[:, :, around], mean, variance, scale, shift, eps=norm.eps)
            y = conv(F.silu(y, inplace=True))[:, :, inner]  # (1, C_out, R, W)
            place = (slice(i, i + 1), slice(None), rows)
            out[place] = y if plus is None else y.add_(plus(place))
    return out


def upsample_chunked(upsample: Upsample, x: Tensor) -> Tensor:
    """upsample(x): (B, C, 2H, 2W), channels last, of x (B, C, H, W)."""
    out = empty_feature_map(x, x.shape[1], scale=2)
    for i in range(len(x)):
        for rows, around, inner in row_chunks(x, at_once=CHUNK_ELEMENTS // 4):
            out[i : i + 1, :, double_rows(rows)] = upsample(x[i : i + 1, :, around])[:, :, double_rows(inner)]
    return out


def double_rows(rows: slice) -> slice:
    return slice(2 * rows.start, 2 * rows.stop)


def group_moments(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the group of every channel, (C,) each in float32, of x (1, C, H, W).

    Those of some rows at a time are joined in float64: torch's own norm sums a whole map channels last in float32, which leaves relative
    errors above 1e-5 at 512×512 places.
    """
    sums = torch.zeros(2, norm.num_groups, dtype=torch.float64, device=x.device)
    for rows, _, _ in row_chunks(x):
        part = x[:, :, rows]
        mean, variance = (kernel_moments if x.device.type == "cpu" else plain_moments)(part, norm.num_groups)
        sums += part.shape[2] / x.shape[2] * torch.stack([mean, variance + mean.square()])
    mean, square = sums
    each = torch.stack([mean, square - mean.square()]).float().repeat_interleave(x.shape[1] // norm.num_groups, dim=1)  # (2, C)
    return each[0], each[1]


def kernel_moments(part: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group, (G,) in float64, of part (1, C, R, W): by the kernel of group norm, which on a CPU is quickest."""
    C, places = part.shape[1], part.shape[2] * part.shape[3]
    one, zero = torch.ones(C), torch.zeros(C)  # float32, and so are then the moments
    _, mean, scale = torch.native_group_norm(part, one, zero, 1, C, places, groups, 0.0)  # (1, G), 1/σ
    return mean[0].double(), scale[0].double() ** -2


def plain_moments(part: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The same; a GPU's kernel takes neither channels last nor weights of another dtype."""
    variance, mean = torch.var_mean(part[0].float().unflatten(0, (groups, -1)), dim=(1, 2, 3), correction=0)
    return mean.double(), variance.double()


def row_chunks(x: Tensor, at_once: int | None = None) -> Iterator[tuple[slice, slice, slice]]:
    """The rows of a map, some at a time: those, those with the neighbours that a 3×3 convolution reads, and those among the latter."""
    H, step = x.shape[2], max(1, (at_once or CHUNK_ELEMENTS) // (x.shape[1] * x.shape[3]))
    for top in range(0, H, step):
        end = min(top + step, H)
        above = max(top - 1, 0)
        yield slice(top, end), slice(above, min(end + 1, H)), slice(top - above, end - above)


def empty_feature_map(x: Tensor, channels: int, *, scale: int = 1) -> Tensor:
    """A map of so many channels and `scale` times the sides, channels last, not yet written."""
    sides = (scale * side for side in x.shape[2:])
    return torch.empty(len(x), channels, *sides, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def view_as_smaller(x: Tensor, shape: torch.Size) -> Tensor:
    """A map (B, C_out, H, W) in the memory of x (B, C, H, W), both channels last, C_out ≤ C.

    Each row begins no later than it did in x, so rows may be written in order while later ones are still read.
    """
    B, C, H, W = shape
    return x.permute(0, 2, 3, 1).reshape(-1)[: shape.numel()].view(B, H, W, C).permute(0, 3, 1, 2)
