"""Tensors in files: the safetensors format, read by memory map and written whole or not at all.

A file is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the bytes of the tensors; nothing
in it can run (https://github.com/huggingface/safetensors, "Format").
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.errors import DaguerreError
from daguerre.runtime.allocator import release_pages

P = ParamSpec("P")
T = TypeVar("T")

# What building a network raises where a config or a shape makes no sense.
BUILD_ERRORS = (
    ValueError,
    RuntimeError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    ZeroDivisionError,
    OverflowError,
    AssertionError,
)
PIECE = 1 << 17  # numbers converted at a time, so that what lies between two precisions stays in a core's cache


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors, whole or not at all.

    Raises:
        DaguerreError: the place cannot be written, or the disk is full.
    """
    with atomic_path(path) as beside:
        write_safetensors(beside, tensors, metadata)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors in place, for use inside an `atomic_path`; raises OSError where the disk is full."""
    # The format knows only row-major tensors, so weights kept in channels_last order are laid out anew.
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # the library's own words for a full disk
        raise OSError(str(error)) from error
    path.chmod(0o644)  # the library keeps its files from everybody else


def read_safetensors(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read every tensor of a file; floating-point ones in `dtype` where it is given. On the CPU the file's pages are mapped, not copied.

    Raises:
        DaguerreError: the file is missing, cut short, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = file.keys()
            if dtype is None:
                return {name: file.get_tensor(name) for name in names}
            return {name: to_compute_layout(file.get_tensor(name), device, dtype, mapped=str(device) == "cpu") for name in names}
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text that `save_safetensors` put beside the tensors.

    Raises:
        DaguerreError: the file is missing, cut short, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


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
        raise DaguerreError(f"'{path}' holds a JSON {type(value).__name__} where an object is needed.")
    return value


def save_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all.

    Raises:
        DaguerreError: the place cannot be written, or the disk is full.
    """
    with atomic_path(path) as beside:
        write_json(beside, value)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object in place, for use inside an `atomic_path`; raises OSError where the disk is full."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def config_errors(path: str | Path) -> Iterator[None]:
    """Says of shapes and configs that describe no network at all what Python or torch says of them, in one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except BUILD_ERRORS as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DaguerreError(
            f"'{path}' holds tensors whose shapes or configs describe no network that can be built ({first[:200]})."
        ) from error


def with_config_errors(load: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """The same loader of a path, which is `sound` about it."""

    @wraps(load)
    def told(path: Path, *args: P.args, **options: P.kwargs) -> T:
        with config_errors(path):
            return load(path, *args, **options)

    return told


def unreadable(path: str | Path, error: Exception) -> DaguerreError:
    """Say in one sentence why a file could not be read."""
    path = Path(path)
    if not path.exists():
        return DaguerreError(f"There is no file '{path}'.")
    if isinstance(error, OSError):
        return DaguerreError(f"Cannot read '{path}': {error.strerror or error}.")
    return DaguerreError(f"'{path}' is cut short or is not a safetensors file ({error}); fetch or save it again.")


def to_compute_layout(tensor: Tensor, device: torch.device | str, dtype: torch.dtype, *, mapped: bool = False) -> Tensor:
    """A tensor where and as a network computes with it.

    On a CPU the kernels of convolutions are laid out channels last, and so are then all feature maps: a tenth to a fifth of a
    convolution's time. mapped: the tensor lies in the map of a file and is read here for the last time; the pages behind it are given
    back to the system where a copy was made, so that a file and its copy in another dtype are never in memory together.
    """
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    if tensor.device.type == torch.device(device).type == "cpu":
        there = _on_cpu(tensor, dtype)
    else:
        there = tensor.to(device, dtype)
    if mapped and there.data_ptr() != tensor.data_ptr():
        release_pages(tensor)
    return there


def _on_cpu(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself if it has this layout already, else a copy."""
    order = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    if tensor.dtype == dtype and tensor.is_contiguous(memory_format=order):
        return tensor
    there = torch.empty(tensor.shape, dtype=dtype, memory_format=order)
    _convert(tensor, there)
    return there


def _convert(tensor: Tensor, there: Tensor) -> None:
    """Copy numbers into another precision, another order of dimensions, or both.

    PyTorch is quick between half precision and float32 in one order, and from order to order in one precision, but slow where it has to
    do more at once; on pieces, one after the other, it takes two thirds of the time.
    """
    if tensor.ndim == 0 or tensor.itemsize > 4 or there.itemsize != 2 or tensor.dtype == there.dtype:
        there.copy_(tensor)
        return
    rows = max(1, PIECE // max(1, tensor[:1].numel()))
    for source, target in zip(tensor.split(rows), there.split(rows), strict=True):
        target.copy_(source.float().to(there.dtype))
