"""Data-parallel training: which of several processes this is.

torchrun or `accelerate launch` starts the processes. On a CPU, two processes with one thread each train a small network faster than one
process with two threads.
"""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


def is_distributed() -> bool:
    """True if a launcher started this process together with others."""
    return "RANK" in os.environ


def rank() -> int:
    """The index of this process; 0 if it is the only one."""
    return state().process_index if is_distributed() else 0


def world() -> int:
    """The number of processes."""
    return state().num_processes if is_distributed() else 1


def main_process_first(function: Callable[[], T]) -> T:
    """Call a function in the first process, then in the others, which find the files that the first one wrote."""
    if not is_distributed():
        return function()
    with state().main_process_first():
        return function()


def state() -> PartialState:
    """Accelerate's process group. Without `cpu=True`, Accelerate would ignore the other processes on a machine without a GPU."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if is_distributed() and not distributed.is_initialized():
        _join("gloo" if cpu else None)
    return PartialState(cpu=cpu)


def _join(backend: str | None) -> None:
    """Join the process group. After a restart torchrun still has the store of the processes that died, with their addresses, on which
    the new ones would wait; so each attempt has its own keys."""
    store, rank, world = next(rendezvous("env://"))
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=world)
