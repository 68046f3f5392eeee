"""The convolutional encoder and decoder of all autoencoders here (Esser et al. 2021, arXiv:2012.09841, table 7).

They convert between images (B, 3, H, W) and latents (B, Z, H/f, W/f), f = 2^(levels − 1). KL and vector-quantised autoencoders differ only
in what lies between the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from daguerre.nn.attention import AttentionBlock
from daguerre.nn.blocks import DownBlock, MidBlock, UpBlock
from daguerre.nn.chunked_conv import CHUNK_ELEMENTS, empty_feature_map, level_inplace, norm_conv, should_chunk
from daguerre.nn.norm import GroupNormSiLU
from daguerre.nn.resample import Downsample, Upsample
from daguerre.nn.resblock import ResBlock

NORM_EPS = 1e-6


def _attention(channels: int, groups: int) -> AttentionBlock:
    return AttentionBlock(channels, groups=groups, eps=NORM_EPS)


def _mid_block(channels: int, groups: int, attention: bool) -> MidBlock:
    resnets = (ResBlock(channels, channels, groups=groups, eps=NORM_EPS) for _ in range(2))
    return MidBlock(resnets, [_attention(channels, groups)] if attention else [])


class Encoder(nn.Module):
    """Images to latents.

    channels: of each level, from the full resolution down. blocks: residual blocks per level. attention_levels: indices of the levels
    whose residual blocks are followed by attention. mid_attention: attention at the lowest resolution. groups: of every norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        blocks: int,
        *,
        attention_levels: Sequence[int] = (),
        mid_attention: bool = True,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = channels[0]
        for level, out in enumerate(channels):
            resnets = [ResBlock(width if i == 0 else out, out, groups=groups, eps=NORM_EPS) for i in range(blocks)]
            attentions = [_attention(out, groups) for _ in range(blocks)] if level in attention_levels else []
            downsampler = Downsample(out, padding=0) if level < len(channels) - 1 else None
            self.down_blocks.append(DownBlock(resnets, attentions, downsampler))
            width = out
        self.mid_block = _mid_block(width, groups, mid_attention)
        self.conv_norm_out = GroupNormSiLU(groups, width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W). Returns (B, Z, H/f, W/f). Large images without gradients are processed in chunks."""
        return self.forward_chunked(x) if should_chunk(self.conv_in.out_channels, x.shape[2] * x.shape[3]) else self.forward_full(x)

    def forward_full(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)  # (B, C_0, H, W)
        for block in self.down_blocks:
            x = block(x)  # (B, C_i, H/2^(i+1), W/2^(i+1)); the last (B, C, H/f, W/f)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))  # (B, Z, H/f, W/f)

    def forward_chunked(self, x: Tensor, chunk: int = CHUNK_ELEMENTS) -> Tensor:
        """The same in little memory: some rows at a time, in the memory of earlier maps (see `nn.chunked_conv`)."""
        x = self.conv_in(x).contiguous(memory_format=torch.channels_last)
        for block in self.down_blocks:
            x = level_inplace(block, x, chunk)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(nn.Module):
    """Latents to images: the encoder's levels in reverse, each with one more residual block. The options are the encoder's."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        blocks: int,
        *,
        attention_levels: Sequence[int] = (),
        mid_attention: bool = True,
        groups: int = 32,
    ) -> None:
        super().__init__()
        width = channels[-1]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.mid_block = _mid_block(width, groups, mid_attention)
        self.up_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(channels))):
            resnets = [ResBlock(width if i == 0 else out, out, groups=groups, eps=NORM_EPS) for i in range(blocks + 1)]
            attentions = [_attention(out, groups) for _ in range(blocks + 1)] if level in attention_levels else []
            self.up_blocks.append(UpBlock(resnets, attentions, Upsample(out) if level else None))
            width = out
        self.conv_norm_out = GroupNormSiLU(groups, width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, Z, H/f, W/f). Returns (B, 3, H, W). Large images without gradients are processed in chunks."""
        positions = z.shape[2] * z.shape[3] * 4 ** (len(self.up_blocks) - 1)
        return self.forward_chunked(z) if should_chunk(self.conv_out.in_channels, positions) else self.forward_full(z)

    def forward_full(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))  # (B, C_last, H/f, W/f)
        for block in self.up_blocks:
            x = block(x)  # (B, C_i, 2H_i, 2W_i); the last (B, C_0, H, W)
        return self.conv_out(self.conv_norm_out(x))  # (B, 3, H, W)

    def forward_chunked(self, z: Tensor, chunk: int = CHUNK_ELEMENTS) -> Tensor:
        """The same in little memory, as in the encoder."""
        x = self.mid_block(self.conv_in(z)).contiguous(memory_format=torch.channels_last)
        for block in self.up_blocks:
            x = level_inplace(block, x, chunk)
        return norm_conv(self.conv_norm_out, self.conv_out, x, empty_feature_map(x, self.conv_out.out_channels), chunk=chunk)
