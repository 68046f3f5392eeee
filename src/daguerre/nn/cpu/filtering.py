"""What the ways of minimal filtering (`nn.winograd`, `nn.doubling`) share: how a convolution is cut, and what a part of it depends on."""

from collections.abc import Iterator

from torch import Tensor

BLOCK = 16  # outputs: products of multiples of so many are up to a tenth quicker


def tiles(pictures: int, rows: int, size: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Some pictures and some of their rows at a time, whole pictures or rows of one, of no more than `most` numbers; a row has `size`."""
    height = max(1, most // size)
    step, together = -(-rows // -(-rows // height)), max(1, height // rows)
    for first in range(0, pictures, together):
        for top in range(0, rows, step):
            yield slice(first, min(first + together, pictures)), slice(top, min(top + step, rows))


def outputs_at_once(channels: int, most: int) -> int:
    """How many outputs to work on at a time: a multiple of FULL whose kernels have at most so many pairs of channels, at least FULL."""
    return max(1, most // channels // BLOCK) * BLOCK


def padded(x: Tensor, top: int, height: int, width: int) -> Tensor:
    """What so many rows of a 3×3 convolution's outputs depend on, (B, height + 2, width + 2, C), of x (B, C, H, W)."""
    B, C, H, W = x.shape
    d, above, end = x.new_zeros(B, height + 2, width + 2, C), max(top - 1, 0), min(top + height + 1, H)
    d[:, above + 1 - top : end + 1 - top, 1 : W + 1] = x[:, :, above:end].permute(0, 2, 3, 1)
    return d
