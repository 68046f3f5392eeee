"""How many threads compute on the CPU, and how idle ones wait for work. PyTorch computes with OpenMP; nothing here imports it at once.

With as many threads as cores, every operation waits for its slowest thread. If another program keeps one core busy, the thread on that core
gets its turn only every few milliseconds, and the other threads wait for it after each of the thousands of operations of a step.
"""

import os
import sys
import time
from pathlib import Path

from daguerre.errors import DaguerreError

# How often an idle OpenMP thread polls before it sleeps: some 20 microseconds, about what waking it costs. GNU OpenMP polls for
# milliseconds by default. While a thread polls, the system cannot move the thread that it waits for to its core.
SPIN_COUNT = "1000"
MAX_THREADS = 1024
MEASURED_SECONDS = 0.1
CORE_TIMES = Path("/proc/stat")


def wait_passively() -> None:
    """Let idle OpenMP threads of this process and its children sleep, unless an environment variable sets how they wait.

    OpenMP reads the variables when PyTorch is imported, so this does nothing after that.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def free_cores() -> int:
    """The number of cores that other programs leave free now, at least 1; measured for a tenth of a second.

    Only the cores that this process may use count. All of them are free on systems that do not report how busy cores are.
    """
    cores = _usable_cores()
    before, start = _idle_seconds(cores), time.monotonic()
    time.sleep(MEASURED_SECONDS)
    after, elapsed = _idle_seconds(cores), time.monotonic() - start
    return len(cores) if before is None or after is None else max(round((after - before) / elapsed), 1)


def check_threads(count: int | None) -> None:
    """Raise DaguerreError if a requested number of threads is out of range."""
    if count is not None and not 1 <= count <= MAX_THREADS:
        raise DaguerreError(f"threads is {count}; it must be 1 to {MAX_THREADS}.")


def set_threads(requested: int | None, recorded: int | None = None) -> int:
    """Compute with the requested number of threads, else with the recorded one, else leave PyTorch's number; returns the number.

    Results are the same bits only with the same number of threads, so a run that continues or repeats another one has that one's number
    as `recorded`. More than there are cores are not used for it.

    Raises:
        DaguerreError: the requested number is out of range.
    """
    import torch

    check_threads(requested)
    count = requested or (recorded if recorded is not None and 1 <= recorded <= len(_usable_cores()) else None)
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def use_free_cores() -> int:
    """Compute with one thread for each free core, at most as many as now, and return the number. OMP_NUM_THREADS has precedence."""
    import torch

    threads = torch.get_num_threads()
    if threads > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(threads, free_cores()))
    return torch.get_num_threads()


def _usable_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _idle_seconds(cores: set[int]) -> float | None:
    """How long the cores have been idle since the system started, added up; None where the system does not tell."""
    try:
        rows = [line.split() for line in CORE_TIMES.read_text().splitlines()]
        # A row is the core's name and its time in user, nice, system, idle and I/O wait, in ticks.
        idle = {row[0]: int(row[4]) + int(row[5]) for row in rows if row and row[0].startswith("cpu")}
        return sum(idle[f"cpu{core}"] for core in cores) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, KeyError, AttributeError):
        return None
