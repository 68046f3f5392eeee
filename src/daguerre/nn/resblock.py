"""The residual block of diffusion networks, x + conv(act(norm(conv(act(norm(x))) + e))).

Ho et al. 2020, arXiv:2006.11239, appendix B; scale-shift norm and resampling inside: Dhariwal and Nichol 2021, arXiv:2105.05233, §3.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.nn.norm import GroupNorm, GroupNormSiLU


def add_maybe_inplace(h: Tensor, x: Tensor) -> Tensor:
    """h + x, written to h unless a gradient or a wider dtype forbids it; the caller must own h."""
    return h + x if h.requires_grad or x.requires_grad or h.dtype != x.dtype else h.add_(x)


class ResBlock(nn.Module):
    """Two 3×3 convolutions with a residual connection.

    emb_width: width of the embedding of time (and class, and vector); None for networks without one (autoencoders).
    scale_shift: the embedding scales and shifts the second norm's output, norm(h)·(1 + s) + b, instead of being added before it.
    resample: halve or double the resolution inside the block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_width: int | None = None,
        *,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_width, out_channels * (2 if scale_shift else 1)) if emb_width else None
        self.norm2 = (GroupNorm if scale_shift else GroupNormSiLU)(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.scale_shift = scale_shift
        self.resample = resample

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); emb: (B, E), before its activation; further rows are ignored (see `nn.attention.repeat_to_batch`).

        Returns (B, C_out, H, W), H and W halved or doubled if the block resamples.
        """
        h = self.norm1(x)
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)  # (B, C, H/2, W/2)
        elif self.resample == "up":
            x, h = F.interpolate(x, scale_factor=2.0), F.interpolate(h, scale_factor=2.0)  # (B, C, 2H, 2W)
        h = self.conv1(h)  # (B, C_out, H, W)
        e = self.time_emb_proj(F.silu(emb[: len(x)]))[:, :, None, None] if self.time_emb_proj is not None and emb is not None else None
        if self.scale_shift and e is not None:
            scale, shift = e.chunk(2, dim=1)
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = self.norm2(h if e is None else add_maybe_inplace(h, e))
        h = self.conv2(self.dropout(h))
        return add_maybe_inplace(h, x if self.conv_shortcut is None else self.conv_shortcut(x))
