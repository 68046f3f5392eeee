"""Convolutional networks over large feature maps with little memory: some rows at a time, results written over what was read.

A norm and its activation are applied to the rows that the next convolution reads, so the feature map between them never exists as a whole.
A residual block holds its input and one more feature map. For inference only, because inputs are overwritten.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.blocks import DownBlock, UpBlock
from daguerre.nn.resample import Upsample
from daguerre.nn.resblock import ResBlock

CHUNK_ELEMENTS = 1 << 22  # elements of a feature map computed at a time; with many more, each chunk allocates new memory
ImageRows = tuple[slice, slice, slice]  # index of some rows of one image, all channels


def should_chunk(channels: int, positions: int) -> bool:
    """True if the largest feature map of one image has more than CHUNK_ELEMENTS elements; smaller ones are faster as a whole."""
    return not torch.is_grad_enabled() and channels * positions > CHUNK_ELEMENTS


def level_inplace(block: nn.Module, x: Tensor, chunk: int = CHUNK_ELEMENTS) -> Tensor:
    """block(x) for a level of an autoencoder; x, channels last, is overwritten. Returns channels last.

    chunk: elements computed at a time, here and below.
    """
    assert isinstance(block, DownBlock | UpBlock)
    for i, resnet in enumerate(block.resnets):
        assert isinstance(resnet, ResBlock)
        x = resblock_inplace(resnet, x, chunk)
        if block.attentions:
            x = block.attentions[i](x)
    if isinstance(block, UpBlock):
        for upsampler in block.upsamplers:
            assert isinstance(upsampler, Upsample)
            x = upsample_chunked(upsampler, x, chunk)
    else:
        for downsampler in block.downsamplers:
            x = downsampler(x)
    return x.contiguous(memory_format=torch.channels_last)


def resblock_inplace(block: ResBlock, x: Tensor, chunk: int = CHUNK_ELEMENTS) -> Tensor:
    """block(x) for a block without embedding or resampling; x (B, C, H, W), channels last, is overwritten, by the result if that fits."""
    h = norm_conv(block.norm1, block.conv1, x, empty_feature_map(x, block.conv1.out_channels), chunk=chunk)
    shortcut = block.conv_shortcut or nn.Identity()
    out = view_as_smaller(x, h.shape) if h.shape[1] <= x.shape[1] else torch.empty_like(h)
    return norm_conv(block.norm2, block.conv2, h, out, lambda rows: shortcut(x[rows]), chunk=chunk)


def norm_conv(
    norm: nn.GroupNorm,
    conv: nn.Module,
    x: Tensor,
    out: Tensor,
    residual: Callable[[ImageRows], Tensor] | None = None,
    *,
    chunk: int = CHUNK_ELEMENTS,
) -> Tensor:
    """conv(silu(norm(x))) + residual for x (B, C, H, W) and a 3×3 convolution, written to `out` (B, C_out, H, W)."""
    for i in range(len(x)):
        image = x[i : i + 1]
        mean, variance = group_moments(norm, image, chunk)
        scale, shift = norm.weight.float(), norm.bias.float()
        for rows, padded, inner in row_chunks(image, chunk):
            y = F.batch_norm(image[:, :, padded], mean, variance, scale, shift, eps=norm.eps)
            y = conv(F.silu(y, inplace=True))[:, :, inner]  # (1, C_out, R, W)
            index = (slice(i, i + 1), slice(None), rows)
            out[index] = y if residual is None else y.add_(residual(index))
    return out


def upsample_chunked(upsample: Upsample, x: Tensor, chunk: int = CHUNK_ELEMENTS) -> Tensor:
    """upsample(x): (B, C, 2H, 2W), channels last, of x (B, C, H, W)."""
    out = empty_feature_map(x, x.shape[1], scale=2)
    for i in range(len(x)):
        for rows, padded, inner in row_chunks(x, chunk // 4):
            out[i : i + 1, :, double_rows(rows)] = upsample(x[i : i + 1, :, padded])[:, :, double_rows(inner)]
    return out


def double_rows(rows: slice) -> slice:
    return slice(2 * rows.start, 2 * rows.stop)


def group_moments(norm: nn.GroupNorm, x: Tensor, chunk: int = CHUNK_ELEMENTS) -> tuple[Tensor, Tensor]:
    """Mean and variance of the group of every channel, (C,) each in float32, of x (1, C, H, W).

    Chunks are combined in float64: torch's own norm sums all positions of a channels-last map in float32, with relative errors above 1e-5
    at 512×512.
    """
    sums = torch.zeros(2, norm.num_groups, dtype=torch.float64, device=x.device)
    for rows, _, _ in row_chunks(x, chunk):
        part = x[:, :, rows]
        mean, variance = (kernel_moments if x.device.type == "cpu" else plain_moments)(part, norm.num_groups)
        sums += part.shape[2] / x.shape[2] * torch.stack([mean, variance + mean.square()])
    mean, square = sums
    moments = torch.stack([mean, square - mean.square()]).float().repeat_interleave(x.shape[1] // norm.num_groups, dim=1)  # (2, C)
    return moments[0], moments[1]


def kernel_moments(part: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group, (G,) in float64, of part (1, C, R, W), by the kernel of group norm: the fastest on a CPU."""
    C, positions = part.shape[1], part.shape[2] * part.shape[3]
    one, zero = torch.ones(C), torch.zeros(C)  # float32, so the moments are float32, too
    _, mean, scale = torch.native_group_norm(part, one, zero, 1, C, positions, groups, 0.0)  # (1, G), 1/σ
    return mean[0].double(), scale[0].double() ** -2


def plain_moments(part: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The same on a GPU, whose kernel supports neither channels last nor weights of another dtype."""
    variance, mean = torch.var_mean(part[0].float().unflatten(0, (groups, -1)), dim=(1, 2, 3), correction=0)
    return mean.double(), variance.double()


def row_chunks(x: Tensor, chunk: int = CHUNK_ELEMENTS) -> Iterator[tuple[slice, slice, slice]]:
    """Split the rows of x: each chunk, the chunk with the neighbours that a 3×3 convolution reads, and its rows within the latter."""
    H, step = x.shape[2], max(1, chunk // (x.shape[1] * x.shape[3]))
    for top in range(0, H, step):
        end = min(top + step, H)
        above = max(top - 1, 0)
        yield slice(top, end), slice(above, min(end + 1, H)), slice(top - above, end - above)


def empty_feature_map(x: Tensor, channels: int, *, scale: int = 1) -> Tensor:
    """An uninitialised feature map with so many channels and `scale` times the height and width of x, channels last."""
    sides = (scale * side for side in x.shape[2:])
    return torch.empty(len(x), channels, *sides, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def view_as_smaller(x: Tensor, shape: torch.Size) -> Tensor:
    """A feature map (B, C_out, H, W) in the memory of x (B, C, H, W), both channels last, C_out ≤ C.

    Each row starts no later than it did in x, so rows can be written in order while later ones are still read.
    """
    B, C, H, W = shape
    return x.permute(0, 2, 3, 1).reshape(-1)[: shape.numel()].view(B, H, W, C).permute(0, 3, 1, 2)
