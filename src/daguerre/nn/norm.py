"""Group normalisation, y = (x − E[x]) / √(Var[x] + ε) · γ + β

The mean and variance are over the channels of a group and all places. Wu and He 2018, arXiv:1803.08494.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class GroupNormSiLU(nn.GroupNorm):
    """Group norm followed by SiLU, x·σ(x): the pair that stands before every convolution of these networks."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return F.silu(y, inplace=not y.requires_grad)
