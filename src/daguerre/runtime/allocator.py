"""Hints to the operating system's allocator: release pages, trim the heap, keep freed memory. They do nothing where they do not exist."""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TRIM_THRESHOLD = 1 << 30  # bytes free at the end of the heap before glibc returns them to the system
MMAP_THRESHOLD = 1 << 25  # bytes from which a block is mapped on its own and returned at once; the maximum of all glibc versions
# mallopt(3): environment variable, parameter, value.
MALLOC_OPTIONS = (("MALLOC_TRIM_THRESHOLD_", -1, TRIM_THRESHOLD), ("MALLOC_MMAP_THRESHOLD_", -3, MMAP_THRESHOLD))


def tune_malloc() -> None:
    """Make glibc keep freed memory in this process, unless the environment configures it.

    A network allocates and frees blocks of some megabytes all the time. By default glibc returns them to the system in between, and each
    new block is filled page by page.
    """
    configured = any(variable in os.environ for variable, _, _ in MALLOC_OPTIONS) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if not configured and (mallopt := _libc_function("mallopt")) is not None:
        for _, parameter, value in MALLOC_OPTIONS:
            mallopt(parameter, value)


def trim_heap() -> None:
    """Return freed memory to the system."""
    if (malloc_trim := _libc_function("malloc_trim")) is not None:
        malloc_trim(0)


def release_pages(tensor: "Tensor") -> None:
    """Drop the memory pages that hold only this tensor of a memory-mapped file; they are read again on use."""
    if not tensor.is_contiguous() or (madvise := _libc_function("madvise")) is None:
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


@cache
def _libc_function(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
