"""Gradient checkpointing: forget the inner states of blocks in the forward pass, compute them again in the backward pass.

Chen et al. 2016, arXiv:1604.06174.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from daguerre.nn.attention import AttentionBlock, SpatialTransformer
from daguerre.nn.resblock import ResBlock


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Within this context the network's residual and attention blocks keep only their inputs; gradients stay bit-identical.

    Costs one more forward pass for roughly a third of the memory. The backward pass must also happen inside. Autocast keeps no weights in
    half precision meanwhile, which would be half as large as the network: each block needs its own for a moment only.
    """
    blocks = [block for block in network.modules() if isinstance(block, ResBlock | AttentionBlock | SpatialTransformer)]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for block in blocks:
            del block.forward  # the instance's; the class's shows again
