"""The levels of a UNet or an autoencoder: residual blocks, each optionally followed by attention, then a change of resolution.

The attribute names are those of the diffusers folder layout, so saved models need no name mapping.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from daguerre.nn.attention import repeat_to_batch
from daguerre.nn.resample import Downsample, Upsample
from daguerre.nn.resblock import ResBlock


class DownBlock(nn.Module):
    """Residual blocks, then downsampling. attentions: as many as residual blocks, or none."""

    def __init__(self, resnets: Iterable[ResBlock], attentions: Iterable[nn.Module], downsampler: Downsample | ResBlock | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([downsampler] if downsampler is not None else [])

    def forward(
        self,
        x: Tensor,
        emb: Tensor | None = None,
        context: Tensor | None = None,
        skips: list[Tensor] | None = None,
        feature: Tensor | None = None,
    ) -> Tensor:
        """x: (B, C, H, W). Appends every state that the up blocks need to the stack `skips`, if given.

        feature: of a T2I-Adapter, added to the last state before the downsampling; without attention to the one after it.
        """
        late = bool(self.downsamplers) and not self.attentions
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb)  # (B, C_out, H, W)
            if self.attentions:
                x = self.attentions[i](x, context)
            if feature is not None and not late and i == len(self.resnets) - 1:
                x = x + feature
            if skips is not None:
                skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, emb) if isinstance(downsampler, ResBlock) else downsampler(x)  # (B, C_out, H/2, W/2)
            if feature is not None and late:
                x = x + feature
            if skips is not None:
                skips.append(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention (or none), residual block."""

    def __init__(self, resnets: Iterable[ResBlock], attentions: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        x = self.resnets[0](x, emb)
        for attention in self.attentions:
            x = attention(x, context)
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    """Residual blocks, then upsampling. attentions: as many as residual blocks, or none."""

    def __init__(self, resnets: Iterable[ResBlock], attentions: Iterable[nn.Module], upsampler: Upsample | ResBlock | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList([upsampler] if upsampler is not None else [])

    def forward(self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None, skips: list[Tensor] | None = None) -> Tensor:
        """x: (B, C, H, W). Pops one state from the stack `skips`, if given, for every residual block."""
        for i, resnet in enumerate(self.resnets):
            if skips is not None:
                x = torch.cat([x, repeat_to_batch(skips.pop(), len(x))], dim=1)  # (B, C + C_skip, H, W)
            x = resnet(x, emb)  # (B, C_out, H, W)
            if self.attentions:
                x = self.attentions[i](x, context)
        for upsampler in self.upsamplers:
            if isinstance(upsampler, ResBlock):
                x = upsampler(x, emb)  # (B, C_out, 2H, 2W)
            else:
                x = upsampler(x, skips[-1].shape[2:] if skips else None)  # (B, C_out, 2H, 2W)
        return x
