"""The effect of allocator hints, measured by the page faults of a process."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from daguerre.runtime.allocator import trim_heap, tune_malloc

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.memset.argtypes, library.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [library.malloc(24 << 20) for _ in range(4)]
    for block in blocks:
        library.memset(block, 1, 24 << 20)
    for block in reversed(blocks):
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "tuned":
    tune_malloc()
page_faults()
again = page_faults()
trim_heap()
print(again, page_faults())
"""
CONFIGURED = {"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0"}
PAGES = 4 * (24 << 20) // os.sysconf("SC_PAGE_SIZE")  # in use at the same time
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
glibc = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="needs glibc")


def page_faults(mode: str, **environment: str) -> tuple[int, int]:
    """Page faults for as much memory as was just freed; and again after the heap was trimmed."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", SCRIPT, mode]
    result = subprocess.run(command, capture_output=True, text=True, env=clean | environment, check=True)
    again, after_trim = result.stdout.split()
    return int(again), int(after_trim)


@glibc
def test_tuned_malloc_keeps_freed_memory_until_the_heap_is_trimmed():
    again, after_trim = page_faults("tuned")
    assert again < PAGES / 10
    assert after_trim > PAGES * 0.9


@glibc
@pytest.mark.parametrize(("mode", "environment"), [("plain", {}), *(("tuned", variables) for variables in CONFIGURED)])
def test_untuned_malloc_and_a_configured_environment_keep_nothing(mode: str, environment: dict[str, str]):
    assert page_faults(mode, **environment)[0] > PAGES * 0.9
