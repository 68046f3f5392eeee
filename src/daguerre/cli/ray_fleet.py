"""A fleet on Ray: Ray Data hands the rows of a table to actors, and each actor generates them as a single process does.

Ray only spreads the rows. Names, bytes, what is skipped, the list of failed rows and the index are those of `cli.fleet`.
"""

import logging
import os
import re
import secrets
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import torch

from daguerre.cli.fleet import Fleet, Outcome
from daguerre.cli.parsing import UsageError, usage_errors
from daguerre.cli.rows import TableRow
from daguerre.cpu_threads import check_threads
from daguerre.errors import DaguerreError

MAX_BLOCKS = 4000  # of rows: Ray needs milliseconds to set up each; when an actor dies, another one visits its block again
RETRIES = 3  # for a block whose actor dies; without a limit, a row that ends its process would be tried without end
CONNECT_SECONDS = 10
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by default, about which it warns
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what Ray prints, on stdout, about processes that it starts again
}


@dataclass(frozen=True)
class ActorPlan:
    """The actors of a fleet. threads: of each. resource: what Ray counts, "CPU" or "GPU". amount: of it for each."""

    actors: int
    threads: int
    resource: str
    amount: int

    @property
    def reserved(self) -> Mapping[str, int]:
        """The arguments that reserve the resources of one actor. An actor on a GPU leaves the CPUs to others."""
        return {"num_cpus": 0, "num_gpus": self.amount} if self.resource == "GPU" else {"num_cpus": self.amount}


def plan_actors(
    nodes: Sequence[Mapping[str, float]], default_threads: int, *, actors: int | None, threads: int | None, device: str | None
) -> ActorPlan:
    """How many actors, and with how many threads each, as every one finds room at once: Ray would wait without end for one that does not.

    Args:
        nodes: the resources of each machine, with the keys "CPU" and "GPU".
        default_threads: the number of threads of one process without --threads.
        actors: the requested number. Default: one for each GPU; without GPUs, as many as have cores for their threads.
        threads: the requested number. Default: 1 next to a GPU, else `default_threads`, or less if --actors needs the cores.

    Raises:
        UsageError: the machines have no room for them.
    """
    resource = "GPU" if (device or "cuda") != "cpu" and (device or any(node.get("GPU") for node in nodes)) else "CPU"
    sizes = [int(node.get(resource, 0)) for node in nodes]
    if resource == "GPU":
        amount, threads = 1, threads or 1
    else:
        share = max(sum(sizes) // (actors or 1), 1)
        threads = threads or min(default_threads, max(sizes, default=1) or 1, share)
        amount = threads
    room = sum(size // amount for size in sizes)
    each = f"{amount} {resource}{'s' if amount > 1 else ''} each"
    if not room:
        raise UsageError(f"Ray has no machine for actors with {each}; give a smaller --threads, or --device cpu.")
    if (actors or 1) <= room:
        return ActorPlan(actors or room, threads, resource, amount)
    fewer = "" if resource == "GPU" else ", or a smaller --threads"
    raise UsageError(f"--actors is {actors}, and Ray has room for {room} with {each}; give at most {room}{fewer}.")


@dataclass(frozen=True)
class RayFleet(Fleet):
    """A fleet that runs on the connected Ray cluster."""

    plan: ActorPlan

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """As an actor computes it, so this process opens no model: it may run on a machine without a GPU."""
        ray = import_ray()
        task = ray.remote(max_retries=RETRIES, **self.plan.reserved)(_identity)
        with one_sentence(ray):
            found = ray.get(task.remote(self._plain, os.getcwd()))
        if isinstance(found, DaguerreError):
            raise found
        return found

    def outcomes(self, rows: Sequence[TableRow]) -> Iterator[Outcome]:
        """Generate rows by the actors; yields them as they are finished.

        Raises:
            DaguerreError: as in `Fleet.generate`; the model of an actor is another one; or Ray stopped.
        """
        if not rows:
            return
        ray = import_ray()
        with one_sentence(ray):
            by_number = {row.number: row for row in rows}
            blocks = ray.data.from_items([{"row": row} for row in rows], override_num_blocks=min(len(rows), MAX_BLOCKS))
            found = blocks.map(
                RowGenerator,
                fn_constructor_args=(self._plain, self.identity, os.getcwd()),
                compute=ray.data.ActorPoolStrategy(size=min(self.plan.actors, len(rows))),
                max_restarts=-1,
                max_task_retries=RETRIES,
                **self.plan.reserved,
            )
            for outcome in found.iter_rows():
                if outcome["stop"]:
                    raise DaguerreError(outcome["error"])
                yield Outcome(by_number[outcome["number"]], outcome["error"] or None)

    @property
    def _plain(self) -> Fleet:
        """The fleet as one actor has it."""
        return Fleet(replace(self.loading, threads=self.plan.threads), self.defaults, self.out.absolute())


class RowGenerator:
    """An actor: opens the model once, for its first row. An error that is not of one row is a value too, so that Ray does not retry it."""

    def __init__(self, fleet: Fleet, identity: Mapping[str, Any], folder: str) -> None:
        """Do not open the model yet, because Ray starts an actor once more if this fails.

        Args:
            identity: that of the model of all actors.
            folder: the working directory of the command.
        """
        self.fleet, self.identity = fleet, identity
        _enter(folder)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Generate the row of an item: its number, what is wrong ("" if nothing), and whether that stops the fleet."""
        row: TableRow = item["row"]
        try:
            if self.fleet.identity != self.identity:
                raise DaguerreError(
                    f"The machine '{socket.gethostname()}' has other weights, adapters or another precision than the first one; "
                    "give all machines the same files, and a --dtype such as float32."
                )
            outcome = self.fleet.generate(row)
        except DaguerreError as error:
            return {"number": row.number, "error": str(error), "stop": True}
        return {"number": row.number, "error": outcome.error or "", "stop": False}


@contextmanager
def on_ray(fleet: Fleet, actors: int | None) -> Iterator[RayFleet]:
    """Connect to the cluster that RAY_ADDRESS names, else start Ray on this machine until the block ends; yields the fleet on it.

    Raises:
        UsageError: Ray is not installed, cannot be reached, or has no room for the actors.
    """
    with usage_errors():
        check_threads(fleet.loading.threads)
    ray = import_ray()
    address = _address()
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        if match := re.fullmatch(r"([^/:]+):(\d+)", address):  # Ray itself would try for minutes
            socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()
        with _no_stderr():  # Ray notes there that QUIET sets its log level
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == "local":
            raise UsageError(f"Ray cannot start on this machine: {_line(error)}") from error
        hint = "If the cluster checks tokens, set RAY_AUTH_MODE=token."
        raise UsageError(f"Ray cannot connect to RAY_ADDRESS '{address}': {_line(error)} {hint}") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        plan = plan_actors(nodes, torch.get_num_threads(), actors=actors, threads=fleet.loading.threads, device=fleet.loading.device)
        free, total = (int(each.get(plan.resource, 0)) for each in (ray.available_resources(), ray.cluster_resources()))
        note = (
            f"actors: {plan.actors}, each with --threads {plan.threads}; free {plan.resource}s: {free} of {total}; machines: {len(nodes)}."
        )
        print(f"daguerre: {note}", file=sys.stderr)
        yield RayFleet(fleet.loading, fleet.defaults, fleet.out, plan)
    finally:
        ray.shutdown()


def _address() -> str:
    """The address of a cluster; "local" starts Ray on this machine."""
    return os.environ.get("RAY_ADDRESS") or "local"


def import_ray() -> ModuleType:
    """The package ray with its part ray.data, neither of which prints or sends anything.

    Raises:
        UsageError: it is not installed.
    """
    private = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: listen on the loopback address alone
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # for this run; Ray would write one into ~/.ray
    }
    for name, value in (QUIET | private if _address() == "local" else QUIET).items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("Ray is not installed; install it with `pip install 'daguerre[ray]'`, or leave out --executor ray.") from error
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # the retries of an actor have no other argument yet
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _identity(fleet: Fleet, folder: str) -> Mapping[str, Any] | DaguerreError:
    _enter(folder)
    try:
        return fleet.identity
    except DaguerreError as error:
        return error


def _enter(folder: str) -> None:
    """Enter the working directory of the command, to which relative paths belong; another machine may not have it."""
    with suppress(OSError):
        os.chdir(folder)


@contextmanager
def one_sentence(ray: ModuleType) -> Iterator[None]:
    """Raise a DaguerreError for each error of Ray in the block; the tracebacks of other processes are its cause."""
    try:
        yield
    except ray.exceptions.RayError as error:
        died = isinstance(error, (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError))
        reason = f"a process ended {RETRIES + 1} times; memory may not suffice for all of them, so give fewer --actors."
        raise DaguerreError(f"Ray stopped: {reason if died else _line(error)} The same command goes on with what is missing.") from error


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what this process and those that it starts write to stderr; Ray's own files keep their logs."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _line(error: Exception) -> str:
    """The last line of an error, which names what happened in another process; its traceback comes before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[-1].strip().rstrip('.')}."
