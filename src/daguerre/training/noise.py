"""Noise for training: from the step's own generator, wherever the network is."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normal(shape: Sequence[int], draw: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise of `shape` on `device`, decided by the state of `draw`, a generator of the CPU.

    A GPU draws its own, from a seed that `draw` gives: a CPU would take longer over it than the GPU over the rest of the step.
    """
    if device.type == "cpu":
        return torch.randn(*shape, generator=draw)
    seed = int(torch.randint(1 << 62, (), generator=draw))
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device)
