"""Which weights these are, as SHA-256: of a file, or of the numbers of a network wherever they lie.

A network's hash covers its names, shapes and values and not their precision in memory: a file in half precision that is read into
float32 has the same. Rounding changes it.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file's bytes; read once as long as its path, size and time of change stay.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path).resolve()
    state = path.stat()
    return _file_hash(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def network_hash(network: nn.Module | Mapping[str, Tensor]) -> str:
    """The SHA-256 of a network's tensors in the order of their names."""
    tensors = network.state_dict() if isinstance(network, nn.Module) else network
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        flat = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().cpu().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
