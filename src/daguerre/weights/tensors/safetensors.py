"""The safetensors format: read by memory map, written completely or not at all.

A file is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the bytes of the tensors; nothing in it can
run (https://github.com/huggingface/safetensors, "Format").
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, wraps
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.errors import DaguerreError
from daguerre.runtime.allocator import release_pages
from daguerre.weights.tensors.pickle import mapped_bytes, typed

P = ParamSpec("P")
T = TypeVar("T")

MAX_HEADER = 100 << 20  # the format's own limit
MAX_LISTED_FAULTS = 8
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
# Raised when a network is built from a config or shapes that make no sense.
BUILD_ERRORS = (
    ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError, AssertionError,
)  # fmt: skip
CONVERT_ELEMENTS = 1 << 17  # converted at a time, so that the intermediate precision stays in a core's cache


class SafetensorsFile:
    """The tensors of a safetensors file: the header is read and checked at once, tensors are mapped on demand.

    Raises:
        DaguerreError: the file is missing, cut short, of another format, or its header is damaged; lists every damaged tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                start = file.read(1)
                if size >= 10 and start == b"{" and 2 <= length <= MAX_HEADER and 8 + length <= size:
                    start += file.read(length - 1)
        except OSError as error:
            raise unreadable(path, error) from error
        if size < 10 or not 2 <= length <= MAX_HEADER or start[:1] != b"{":
            raise DaguerreError(f"'{path}' is cut short, or neither a safetensors file nor a pickled checkpoint. Give one of these.")
        if 8 + length > size:
            raise DaguerreError(f"'{path}' is cut short inside its header: {size} bytes of {8 + length}. Download it again.")
        self._data_start = 8 + length
        try:
            header = json.loads(start.decode(), object_pairs_hook=_reject_duplicate_keys)
        except (ValueError, RecursionError) as error:
            raise DaguerreError(f"'{path}' has a header that cannot be read ({error}). Download or save it again.") from error
        metadata = header.pop("__metadata__", {})
        self.metadata = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
        self._entries = self._checked_entries(header, size - self._data_start)
        self.shapes = {name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for name, entry in self._entries.items()}

    def _checked_entries(self, header: Mapping[str, Any], data_bytes: int) -> "dict[str, _Entry]":
        entries, faults = {}, []
        for name, value in header.items():
            try:
                if not name.isprintable():
                    raise ValueError("its name has unprintable characters")
                entries[name] = _parse_entry(value, data_bytes)
            except (ValueError, TypeError, KeyError) as error:
                faults.append(f"{name[:80] if name.isprintable() else ascii(name[:80])}: {error}")
        for before, after in pairwise(sorted(entries, key=lambda name: entries[name][2:])):
            if entries[after].start < entries[before].end:
                faults.append(f"{after[:80]} overlaps {before[:80]}")
        if not faults:
            return entries
        more = f"; and {len(faults) - MAX_LISTED_FAULTS} more" if len(faults) > MAX_LISTED_FAULTS else ""
        shown = "; ".join(faults[:MAX_LISTED_FAULTS]) + more
        raise DaguerreError(f"'{self.path}' is cut short or damaged in {len(faults)} tensors: {shown}. Download or save it again.")

    @cached_property
    def _bytes(self) -> Tensor:
        return mapped_bytes(self.path)

    def tensor(self, name: str) -> Tensor:
        """The tensor as a private memory map of the file: bytes are read on use, and the file is never written."""
        dtype, shape, start, end = self._entries[name]
        return typed(self._bytes[self._data_start + start : self._data_start + end], dtype).view(shape)


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _parse_entry(entry: Mapping[str, Any], data_bytes: int) -> _Entry:
    """Check one entry of a header."""
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise ValueError(f"its type {entry['dtype']!r} is unknown")
    dtype, shape, (start, end) = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, end))
    if not counts or len(shape) > 16 or prod(n or 1 for n in shape) >= 1 << 48:  # torch multiplies empty shapes, too
        raise ValueError("its shape or offsets are no valid counts")
    if end > data_bytes:
        raise ValueError(f"its last {end - max(start, data_bytes)} bytes are missing")
    if end - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"shape {list(shape)} of {entry['dtype']} needs {prod(shape) * dtype.itemsize} bytes, and it has {end - start}")
    return _Entry(dtype, shape, start, end)


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors, completely or not at all.

    Raises:
        DaguerreError: the path cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        write_safetensors(temporary, tensors, metadata)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors in place, for use inside an `atomic_path`. Raises OSError if the disk is full."""
    # The format only has row-major tensors, so channels-last weights are copied.
    row_major = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(row_major, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # raised by the library if the disk is full
        raise OSError(str(error)) from error
    path.chmod(0o644)  # the library makes files readable by their owner only


def read_safetensors(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read every tensor of a file. On a CPU they are memory maps unless `dtype` converts them; it applies to floating-point ones.

    Raises:
        DaguerreError: the file is missing, cut short, or not safetensors.
    """
    file = SafetensorsFile(Path(path))
    if dtype is None:
        return {name: file.tensor(name).to(device) for name in file.shapes}
    return {name: to_compute_layout(file.tensor(name), device, dtype, mapped=True) for name in file.shapes}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of `save_safetensors`.

    Raises:
        DaguerreError: the file is missing, cut short, or not safetensors.
    """
    return SafetensorsFile(Path(path)).metadata


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DaguerreError: the file is missing, or is not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DaguerreError(f"'{path}' is not readable as JSON ({error}).") from error
    if not isinstance(value, dict):
        raise DaguerreError(f"'{path}' is a JSON {type(value).__name__}; it must be a JSON object.")
    return value


def save_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, completely or not at all.

    Raises:
        DaguerreError: the path cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        write_json(temporary, value)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object in place, for use inside an `atomic_path`. Raises OSError if the disk is full."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def config_errors(path: str | Path) -> Iterator[None]:
    """Convert exceptions raised while building a network into one DaguerreError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except BUILD_ERRORS as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DaguerreError(f"No network can be built from the config or tensor shapes of '{path}' ({first[:200]}).") from error


def with_config_errors(load: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """Decorate a loader of a path with `config_errors`."""

    @wraps(load)
    def guarded(path: Path, *args: P.args, **options: P.kwargs) -> T:
        with config_errors(path):
            return load(path, *args, **options)

    return guarded


def unreadable(path: str | Path, error: OSError) -> DaguerreError:
    """The error for a file that cannot be read."""
    path = Path(path)
    if not path.exists():
        return DaguerreError(f"There is no file '{path}'.")
    return DaguerreError(f"Cannot read '{path}': {error.strerror or error}.")


def to_compute_layout(tensor: Tensor, device: torch.device | str, dtype: torch.dtype, *, mapped: bool = False) -> Tensor:
    """Move a tensor to the device, dtype and memory layout of the computation.

    On a CPU, convolution weights become channels last, and so do all feature maps: that saves a tenth to a fifth of a convolution's time.

    mapped: the tensor is a memory map of a file and is used here for the last time. If it is copied, its pages are released, so that a
        file and its copy are never in memory together.
    """
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    if tensor.device.type == torch.device(device).type == "cpu":
        moved = _to_cpu_layout(tensor, dtype)
    else:
        moved = tensor.to(device, dtype)
    if mapped and moved.data_ptr() != tensor.data_ptr():
        release_pages(tensor)
    return moved


def _to_cpu_layout(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself if it has this dtype and layout already, else a copy."""
    order = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    if tensor.dtype == dtype and tensor.is_contiguous(memory_format=order):
        return tensor
    target = torch.empty(tensor.shape, dtype=dtype, memory_format=order)
    _convert_into(tensor, target)
    return target


def _convert_into(source: Tensor, target: Tensor) -> None:
    """Copy into another precision, another memory order, or both.

    PyTorch is fast at either, but slow at both at once. Converting in chunks through float32 takes two thirds of the time.
    """
    if source.ndim == 0 or source.itemsize > 4 or target.itemsize != 2 or source.dtype == target.dtype:
        target.copy_(source)
        return
    rows = max(1, CONVERT_ELEMENTS // max(1, source[:1].numel()))
    for part, converted in zip(source.split(rows), target.split(rows), strict=True):
        converted.copy_(part.float().to(target.dtype))
