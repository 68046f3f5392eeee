"""Gradient checkpointing: discard the activations inside blocks in the forward pass, recompute them in the backward pass.

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

BLOCKS = (ResBlock, AttentionBlock, SpatialTransformer)  # of a UNet: all but its first and last layers and its embeddings


@contextmanager
def checkpointed(*networks: nn.Module) -> Iterator[None]:
    """Within this context, the networks' blocks save only their inputs; gradients stay bit-identical.

    The blocks are BLOCKS and the modules with a true attribute `checkpointed`. It costs one more forward pass and saves about two thirds of
    the memory. The backward pass must happen inside the context, too.
    Autocast's weight cache is off meanwhile; it would hold a half-precision copy of the whole network.
    """
    modules = [module for network in networks for module in network.modules()]
    blocks = [module for module in modules if isinstance(module, BLOCKS) or getattr(module, "checkpointed", False)]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for block in blocks:
            del block.forward  # removes the override; the method of the class remains
