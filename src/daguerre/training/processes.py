"""Several processes that train one model: how to start them, and how they take turns with files.

On one machine `--processes 2` is enough; across machines the same command runs under `accelerate launch` or `torchrun`. On a CPU two
processes of one thread each train a small network faster than one process of two threads, which wait for each other in every layer.
"""

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from daguerre.errors import DaguerreError

T = TypeVar("T")
ON_CPU = "ACCELERATE_USE_CPU"  # accelerate's own
GRACE = 30.0  # seconds that the others have to end by themselves when one has failed


def is_distributed() -> bool:
    """Whether this process is one of several that were started together."""
    return "RANK" in os.environ


def launch(processes: int, act: Callable[..., T], *arguments: Any) -> T:
    """Call `act(*arguments)`, which can be pickled, in several processes that train together; return what the first one returned.

    Ctrl-C and SIGTERM reach all of them, and none outlives the process that called. Only the first speaks on stderr.

    Raises:
        DaguerreError: there are not so many devices, a process died, or what a process raised, the first of them to fail.
    """
    available = torch.cuda.device_count() or os.cpu_count() or 1
    if not 1 <= processes <= available:
        raise DaguerreError(f"{processes} processes were asked for, but this machine has {available} devices or cores for them.")
    context, port = get_context("spawn"), _free_port()
    workers: list[SpawnProcess] = []
    telling: dict[Connection, int] = {}
    try:
        with _signals_reach(workers):
            for rank in range(processes):
                ear, mouth = context.Pipe(duplex=False)
                worker = context.Process(target=_take_part, args=(rank, processes, port, mouth, act, arguments))
                worker.start()
                mouth.close()  # the worker's copy is the last, so that its end is heard
                workers.append(worker)
                telling[ear] = rank
            results = _results(telling, workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return results[0]


def _results(telling: dict[Connection, int], workers: Sequence[SpawnProcess]) -> dict[int, Any]:
    """What each process returned. Raises what the first to fail raised, when all have ended or time is up."""
    results: dict[int, Any] = {}
    failure, deadline = None, None
    while telling and (deadline is None or time.monotonic() < deadline):
        for ear in wait(list(telling), None if deadline is None else deadline - time.monotonic()):
            assert isinstance(ear, Connection)
            rank = telling.pop(ear)
            try:
                result, error = ear.recv()
            except EOFError:
                workers[rank].join()
                code = workers[rank].exitcode
                result, error = None, DaguerreError(f"Process {rank} of {len(workers)} died with exit code {code}; is memory short?")
            if error is None:
                results[rank] = result
            elif failure is None:
                failure, deadline = error, time.monotonic() + GRACE
    if failure is not None:
        raise failure
    return results


def _take_part(rank: int, world: int, port: int, mouth: Connection, act: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """The life of one process: tell (result, None) or (None, error)."""
    os.setsid()  # Ctrl-C reaches the process that called, which passes it on, once
    if rank > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not torch.cuda.is_available():
        os.environ[ON_CPU] = "true"
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    try:
        told = act(*arguments), None
        state().destroy_process_group()
    except (DaguerreError, KeyboardInterrupt) as error:
        told = None, error
    except BaseException as error:
        unexpected = RuntimeError(f"{type(error).__name__} in process {rank}: {error}")  # not every error can be pickled
        unexpected.add_note(traceback.format_exc())
        told = None, unexpected
    mouth.send(told)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signals_reach(workers: Sequence[SpawnProcess]) -> Iterator[None]:
    """Inside the block SIGINT and SIGTERM act on the workers and not on this process."""

    def pass_on(number: int, _frame: Any) -> None:
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank() -> int:
    """Which of the processes this is; 0 where there is one."""
    return state().process_index if is_distributed() else 0


def world() -> int:
    """How many processes there are."""
    return state().num_processes if is_distributed() else 1


def main_process_first(act: Callable[[], T]) -> T:
    """Do something in the first process and only then in the others, which find the files that it left."""
    if not is_distributed():
        return act()
    with state().main_process_first():
        return act()


def state() -> PartialState:
    """This process among the others. `PartialState` alone does not read what `Accelerator` reads: whether they train on the CPU."""
    return PartialState(cpu=os.environ.get(ON_CPU) == "true")
