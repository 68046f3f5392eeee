"""Read the tensors of a pickled checkpoint without executing it (`pickle_vm` interprets the pickle).

There are two containers, recognised by their first bytes: the zip archive (torch >= 1.6: NAME/data.pkl, NAME/data/KEY) and the older
stream of pickles followed by raw storages, both as torch.save writes them (torch/serialization.py).
"""

import re
import struct
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.weights.tensors.pickle_vm import Bounded, Machine, RefusedError, StorageRef, TensorRef

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number 0x1950a86a20f9469cfc6c
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")  # where trainers store the weights, in order of preference
WRAPPER_PREFIX = re.compile(r"(module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile
DAMAGE = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    struct.error,
    NotImplementedError,
    RuntimeError,
)  # raised by zipfile


class PickledFile:
    """The tensors of a pickled checkpoint: described at once, mapped on demand.

    tensors: the entries of the state dict, which is the root or one of `STATE_DICT_KEYS` in it; nested dictionaries are joined with a dot.
    metadata: numbers and strings next to the state dict.

    Raises:
        DaguerreError: the file contains anything else. Nothing of it is executed.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                start = file.read(len(LEGACY_START))
                root, self._locations = _read_legacy(file) if start == LEGACY_START else _read_zip(file)
            self.tensors, self.metadata = _state_dict(root)
            self._check_locations()
        except (RefusedError, *DAMAGE) as error:
            raise DaguerreError(
                f"{self.path} is refused as a pickled checkpoint: {error}. Only plain tensors are allowed; "
                "use a .safetensors file of the same model."
            ) from error

    def _check_locations(self) -> None:
        size = self.path.stat().st_size
        for name, ref in self.tensors.items():
            start, length = self._locations.get(ref.storage.key, (0, -1))
            if ref.storage.numel * ref.dtype.itemsize > length or start + length > size:
                raise RefusedError(f"the bytes of {name[:80]!r} are incomplete; the file may be cut off")

    @cached_property
    def _bytes(self) -> Tensor:
        return mapped_bytes(self.path)

    def tensor(self, name: str) -> Tensor:
        """The tensor as a private memory map of the file: bytes are read on use, and the file is never written."""
        ref = self.tensors[name]
        start = self._locations[ref.storage.key][0]
        flat = typed(self._bytes[start : start + ref.storage.numel * ref.dtype.itemsize], ref.dtype)
        return flat.as_strided(ref.shape, ref.strides, flat.storage_offset() + ref.offset)


def mapped_bytes(path: Path) -> Tensor:
    """The bytes of a file as a copy-on-write memory map: (N,) uint8."""
    mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    return torch.empty(0, dtype=torch.uint8).set_(mapped)  # pyright: ignore[reportArgumentType]


def typed(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """View bytes as a dtype; copies them only if they are not aligned."""
    return (raw if raw.storage_offset() % dtype.itemsize == 0 else raw.clone()).view(dtype)


def _state_dict(root: object) -> tuple[dict[str, TensorRef], dict[str, str]]:
    if not isinstance(root, dict):
        raise RefusedError("it holds no dictionary of tensors")
    inner = root
    for _ in range(3):  # bounded, because a dictionary may contain itself
        key = next((key for key in STATE_DICT_KEYS if isinstance(inner.get(key), dict)), None)
        if key is None:
            break
        inner = inner[key]
    tensors = {key: value for key, value in inner.items() if isinstance(key, str) and isinstance(value, TensorRef)}
    if inner is root:
        nested = {key: value for key, value in root.items() if isinstance(key, str) and isinstance(value, dict)}
        tensors |= {f"{outer}.{key}": ref for outer, level in nested.items() for key, ref in level.items() if isinstance(ref, TensorRef)}
    if not tensors:
        raise RefusedError("it holds no tensors")
    if all(WRAPPER_PREFIX.match(name) for name in tensors):
        tensors = {WRAPPER_PREFIX.sub("", name, count=1): value for name, value in tensors.items()}
    if unprintable := [name for name in tensors if not name.isprintable()]:
        raise RefusedError(f"the name {unprintable[0][:80]!a} has unprintable characters")
    return tensors, {key: str(value) for key, value in root.items() if isinstance(key, str) and isinstance(value, str | int | float)}


def _read_zip(file: BinaryIO) -> tuple[object, Mapping[str, tuple[int, int]]]:
    """The root object and, for each storage key, its (start, length) in the file."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise RefusedError("its archive has no single NAME/data.pkl")
        folder = roots[0].removesuffix("data.pkl")
        wanted = [entry for name, entry in entries.items() if name.startswith((f"{folder}data/", roots[0], f"{folder}byteorder"))]
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in wanted):
            raise RefusedError("its archive is compressed or encrypted")
        order = entries.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise RefusedError("its numbers are not little-endian")
        with archive.open(roots[0]) as stream:
            root = Machine().run(Bounded(stream, entries[roots[0]].file_size))
    locations = {}
    for entry in wanted:
        file.seek(entry.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise RefusedError(f"its archive entry {entry.filename[:80]!r} is damaged")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        locations[entry.filename.removeprefix(f"{folder}data/")] = (entry.header_offset + 30 + name_length + extra_length, entry.file_size)
    return root, locations


def _read_legacy(file: BinaryIO) -> tuple[object, Mapping[str, tuple[int, int]]]:
    """Four pickles (version, system, object, storage keys), then for each key an int64 count and its elements."""
    end = file.seek(0, 2)
    file.seek(len(LEGACY_START))
    storages: dict[str, StorageRef] = {}

    def pickled() -> object:
        machine = Machine(storages=storages)
        return machine.run(Bounded(file, end - file.tell()))

    version, system, root, keys = pickled(), pickled(), pickled(), pickled()
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(keys, list):
        raise RefusedError("its container has an unknown version or byte order")
    locations = {}
    for key in keys:
        count = file.read(8)
        if not isinstance(key, str) or key not in storages or len(count) < 8:
            raise RefusedError("its storages are incomplete; the file may be cut off")
        length = struct.unpack("<q", count)[0] * storages[key].dtype.itemsize
        locations[key] = (file.tell(), length)
        if length < 0 or file.tell() + length > end:
            raise RefusedError("its storages are incomplete; the file may be cut off")
        file.seek(length, 1)
    return root, locations
