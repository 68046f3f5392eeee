"""SHA-256 of the values of a network in memory.

It covers names, shapes and values, but not their dtype: a half-precision file that is loaded into float32 keeps its hash. Rounding changes
it.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def network_hash(network: nn.Module | Mapping[str, Tensor]) -> str:
    """The SHA-256 of a network's tensors, sorted by name."""
    tensors = network.state_dict() if isinstance(network, nn.Module) else network
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        flat = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().cpu().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
