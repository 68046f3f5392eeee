"""Which weights these are, as SHA-256: of a file, or of the numbers of a network wherever they lie.

A network's hash covers its names, shapes and values and not their precision in memory: a file in half precision that is read into
float32 has the same. Rounding changes it.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.weights.tensors.safetensors import read_json, save_json, unreadable

LARGE = 1 << 26  # bytes from which a file's hash is kept between runs
REMEMBERED = 500


def identity(model: LatentDiffusion | LatentPrior) -> str:
    """A model's hash: of its file, of all its files together, or, where it did not come from files, of its networks."""
    if model.files:
        return files_hash(model.files)
    return _joined(network_hash(module) for module in model.modules)


def files_hash(files: Sequence[Path]) -> str:
    """The SHA-256 of one file, or of the sorted hashes of several, so that it does not matter where they lie."""
    return file_hash(files[0]) if len(files) == 1 else _joined(sorted(file_hash(path) for path in files))


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file's bytes; a large one is read once, and remembered as long as its path, size and time of change stay.

    Raises:
        DaguerreError: it cannot be read.
    """
    path = Path(path).resolve()
    try:
        state = path.stat()
        return _file_hash(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise unreadable(path, error) from error


@lru_cache(maxsize=1024)
def _file_hash(path: Path, size: int, changed: int) -> str:
    key, known = f"{path} {size} {changed}", _read_cache() if size >= LARGE else {}
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        if size >= LARGE:
            with suppress(DaguerreError):  # a home that cannot be written only costs time
                save_json(_cache_path(), dict(list(known.items())[-REMEMBERED:]))
    return known[key]


def _cache_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daguerre" / "hashes.json"


def _read_cache() -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in read_json(_cache_path()).items()}
    except DaguerreError:
        return {}


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def network_hash(network: nn.Module | Mapping[str, Tensor]) -> str:
    """The SHA-256 of a network's tensors in the order of their names."""
    tensors = network.state_dict() if isinstance(network, nn.Module) else network
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        flat = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().cpu().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
