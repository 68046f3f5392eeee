"""Group normalisation, y = (x − E[x]) / √(Var[x] + ε) · γ + β

The mean and variance are over the channels of a group and all positions. Wu and He 2018, arXiv:1803.08494.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU in bfloat16, PyTorch's channels-last kernel takes three times as long as the channels-first one on maps of at most MAX_POSITIONS
# (H·W) whose channels per group are not a multiple of VECTOR_WIDTH.
MAX_POSITIONS, VECTOR_WIDTH = 256, 16


class GroupNorm(nn.GroupNorm):
    """PyTorch's group norm, computed in the faster memory format; the result has the memory format of the input.

    On a GPU under autocast, bfloat16 stays bfloat16: converting to float32, as autocast does, adds a quarter to an autoencoder's training
    step. The kernel computes mean and variance in float32 in both cases.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda and input.dtype == torch.bfloat16 and self.weight.dtype == torch.float32:
            with torch.autocast("cuda", enabled=False):
                return F.group_norm(input, self.num_groups, self.weight.bfloat16(), self.bias.bfloat16(), self.eps)
        if not _channels_first_is_faster(self, input):
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


class GroupNormSiLU(GroupNorm):
    """Group norm followed by SiLU, x·σ(x), as before every convolution of these networks."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return F.silu(y, inplace=not y.requires_grad)


def _channels_first_is_faster(norm: nn.GroupNorm, x: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and norm.num_channels // norm.num_groups % VECTOR_WIDTH != 0
        and x.shape[2:].numel() <= MAX_POSITIONS
        and x.is_contiguous(memory_format=torch.channels_last)
    )
