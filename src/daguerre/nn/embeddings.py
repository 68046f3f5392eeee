"""Sinusoidal embeddings of numbers: emb(t) = [cos(ω_i t), sin(ω_i t)], ω_i = 10000^(−i / (W/2 − shift))

Vaswani et al. 2017, arXiv:1706.03762, §3.5; Ho et al. 2020, arXiv:2006.11239, appendix B.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal(t: Tensor, width: int, *, cos_first: bool = True, frequency_shift: int = 0) -> Tensor:
    """Embed numbers as sine and cosine waves of falling frequency.

    t: (B,), any real numbers (timesteps 0 … 999; SDXL's image sizes in pixels). Returns (B, width) in float32.
    DDPM puts the sines first and shifts by 1; latent diffusion puts the cosines first and does not shift.
    """
    half = width // 2
    i = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) / (half - frequency_shift) * i)  # (B, W/2)
    waves = [angles.cos(), angles.sin()] if cos_first else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(waves, dim=-1), (0, width % 2))  # (B, W)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear: from the sinusoidal embedding (or SDXL's vector) to the embedding that every residual block receives."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, out_width)
        self.linear_2 = nn.Linear(out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))  # (B, E)
