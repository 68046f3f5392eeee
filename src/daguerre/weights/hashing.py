"""SHA-256 of weights: of a file, or of the values of a network in memory (see `runtime.network_hash`)."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.runtime.network_hash import network_hash
from daguerre.weights.tensors.safetensors import read_json, save_json, unreadable

CACHE_MIN_BYTES = 1 << 26  # larger files have their hash cached between runs
MAX_CACHED = 500


def identity(model: LatentDiffusion | LatentPrior) -> str:
    """A model's hash: of its file or files, or of its networks if it was not loaded from files."""
    if model.files:
        return files_hash(model.files)
    return _joined(network_hash(module) for module in model.modules)


def files_hash(files: Sequence[Path]) -> str:
    """The SHA-256 of one file, or of the sorted hashes of several, so that their paths do not matter."""
    return file_hash(files[0]) if len(files) == 1 else _joined(sorted(file_hash(path) for path in files))


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file's bytes; that of a large file is cached by path, size and modification time.

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
def _file_hash(path: Path, size: int, modified: int) -> str:
    key, cache = f"{path} {size} {modified}", _read_cache() if size >= CACHE_MIN_BYTES else {}
    if key not in cache:
        with path.open("rb") as file:
            cache[key] = hashlib.file_digest(file, "sha256").hexdigest()
        if size >= CACHE_MIN_BYTES:
            with suppress(DaguerreError):  # without a writable cache, it only takes longer
                save_json(_cache_path(), dict(list(cache.items())[-MAX_CACHED:]))
    return cache[key]


def _cache_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daguerre" / "hashes.json"


def _read_cache() -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in read_json(_cache_path()).items()}
    except DaguerreError:
        return {}


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
