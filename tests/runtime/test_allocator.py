"""What the system is told of allocator, seen in what it does: the pages that a process asks for."""

import os
import subprocess
import sys

import pytest

from daguerre.cli import main
from daguerre.runtime import allocator

LOOP = """
import ctypes, resource, sys
from daguerre.runtime.allocator import give_freed_back, keep_freed

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.memset.argtypes, library.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def asked():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [library.malloc(24 << 20) for _ in range(4)]
    for place in maps:
        library.memset(place, 1, 24 << 20)
    for place in reversed(maps):
        library.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed()
asked()
again = asked()
give_freed_back()
print(again, asked())
"""
START = """
import subprocess, sys
from daguerre.runtime.allocator import keep_freed

keep_freed()
subprocess.run([sys.executable, "-c", sys.argv[1], "plain"], check=True)
"""
SAID = {"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0"}
PAGES = 4 * (24 << 20) // os.sysconf("SC_PAGE_SIZE")  # of what is in use at a time
glibc = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="only glibc is told")


def pages_asked_for(how: str, **environment: str) -> tuple[int, int]:
    """For maps of as many bytes as were freed just before; and again, after all that was freed was given back."""
    plain = {name: value for name, value in os.environ.items() if name not in (*allocator.POLICY, "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", LOOP, how] if how != "started" else [sys.executable, "-c", START, LOOP]
    done = subprocess.run(command, capture_output=True, text=True, env=plain | environment, check=True)
    again, anew = done.stdout.split()
    return int(again), int(anew)


@glibc
@pytest.mark.parametrize("how", ["kept", "started"])  # by a process that keeps what it frees
def test_what_is_freed_is_kept_until_it_is_given_back(how: str):
    again, anew = pages_asked_for(how)
    assert again < PAGES / 10
    assert anew > PAGES * 0.9


@glibc
@pytest.mark.parametrize(("how", "environment"), [("plain", {}), *(("kept", said) for said in SAID)])
def test_otherwise_and_where_the_environment_says_so_it_is_not_kept(how: str, environment: dict[str, str]):
    assert pages_asked_for(how, **environment)[0] > PAGES * 0.9


def test_every_command_keeps_what_it_freed(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(main, "tune_malloc", lambda: calls.append(1))
    assert main.main(["models", "--samplers"]) == 0
    assert main.main(["--version"]) == 0
    assert len(calls) == 1
