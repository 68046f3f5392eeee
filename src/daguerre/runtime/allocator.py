"""What the system is told of a process' memory: which pages it needs no more, which had better be large, and that it keeps what it freed.

Each is advice that changes no number. Where the system has no such call, nothing is told.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGE_PAGE = 1 << 21  # bytes; Linux on x86 and most ARM gives such pages where it is asked, elsewhere the question has no effect
KEPT = 1 << 30  # bytes that are free at the end of the heap before the C library gives them back
SINGLE = 1 << 25  # bytes from which a block is mapped by itself, and goes back at once; the most that all versions of glibc take
POLICY = {"MALLOC_TRIM_THRESHOLD_": (-1, KEPT), "MALLOC_MMAP_THRESHOLD_": (-3, SINGLE)}  # mallopt(3): variable, parameter and value


def tune_malloc() -> None:
    """Keep freed blocks for the next ones that are asked for, in this process and those it starts, unless the environment tells glibc.

    A network frees maps of some megabytes all the time and asks for as many. The C library gives them back to the system in between, and
    new ones come page by page: of 100 steps of a VQ-VAE's training that took 13 s of the system's time, of which 1 s is left.
    """
    mallopt, told = _call("mallopt"), POLICY.keys() & os.environ.keys() or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if mallopt is None or told:
        return
    for variable, (parameter, value) in POLICY.items():
        mallopt(parameter, value)
        os.environ[variable] = str(value)  # which is read when a process starts


def trim_heap() -> None:
    """Give the system what was freed, which the C library keeps for itself otherwise."""
    if (malloc_trim := _call("malloc_trim")) is not None:
        malloc_trim(0)


def release_pages(tensor: "Tensor") -> None:
    """Drop the pages of a file's map that hold nothing but this tensor; they are read again."""
    if tensor.is_contiguous():
        _advise(tensor, mmap.PAGESIZE, "MADV_DONTNEED")


def advise_hugepages(tensor: "Tensor") -> None:
    """Have the memory of a new tensor come in large pages; otherwise it comes page by page when it is written."""
    _advise(tensor, LARGE_PAGE, "MADV_HUGEPAGE")


def _advise(tensor: "Tensor", page: int, advice: str) -> None:
    """Tell how the pages are used that hold nothing but this tensor."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-start // page) * page, end // page * page
    if first < last and (madvise := _call("madvise")) is not None:
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), getattr(mmap, advice))


@cache
def _call(name: str) -> Callable[..., int] | None:
    """A function of Linux' C library, None where there is none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
