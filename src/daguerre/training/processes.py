"""Several processes that train one model: how to start them, and how they take turns with files.

On one machine `--processes 2` is enough; across machines the same command runs under `accelerate launch` or `torchrun`. On a CPU two
processes of one thread each train a small network faster than one process of two threads, which wait for each other in every layer.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState

from daguerre.errors import DaguerreError

T = TypeVar("T")
ON_CPU = "ACCELERATE_USE_CPU"  # accelerate's own


def inside() -> bool:
    """Whether this process is one of several that were started together."""
    return "RANK" in os.environ


def start(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m daguerre ARGUMENTS` in `processes` processes that train together; return the exit code, 0 if all ended well."""
    available = torch.cuda.device_count() or os.cpu_count() or 1
    if not 1 <= processes <= available:
        raise DaguerreError(f"{processes} processes were asked for, but this machine has {available} devices or cores for them.")
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment |= {ON_CPU: "true", "OMP_NUM_THREADS": str(max(1, available // processes))}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "daguerre"]
    return subprocess.run([*launcher, *arguments], env=environment, check=False).returncode


def rank() -> int:
    """Which of the processes this is; 0 where there is one."""
    return state().process_index if inside() else 0


def world() -> int:
    """How many processes there are."""
    return state().num_processes if inside() else 1


def main_first(act: Callable[[], T]) -> T:
    """Do something in the first process and only then in the others, which find the files that it left."""
    if not inside():
        return act()
    with state().main_process_first():
        return act()


def state() -> PartialState:
    """This process among the others. `PartialState` alone does not read what `Accelerator` reads: whether they train on the CPU."""
    return PartialState(cpu=os.environ.get(ON_CPU) == "true")
