"""Sharded training: each process keeps its share of every weight, gradient, moment and average (ZeRO, Rajbhandari et al. 2020,
arXiv:1910.02054, stage 3; Zhao et al. 2023, arXiv:2304.11277), by torch's `fully_shard`.

A block's weights are gathered before it computes and freed after. A checkpoint has the files of each process as safetensors, written by
torch's distributed checkpoints in the background, and `state.json` with the hash of each file. It can be loaded by any number of processes.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from daguerre.atomic_io import publish
from daguerre.errors import DaguerreError
from daguerre.training.checkpoint import (
    TrainState,
    checkpoint_path,
    remove_old,
    remove_unfinished,
    verified_checkpoints,
    write_record,
)
from daguerre.training.plan import announce
from daguerre.training.run_identity import require_same


class FullySharded:
    """Each process has a share of one network (see `parallel.Parallelism`).

    blocks: the classes of the modules whose weights are gathered one at a time. cpu_offload: keep the shares in the CPU's memory.
    """

    def __init__(self, accelerator: Accelerator, blocks: tuple[type[nn.Module], ...], *, cpu_offload: bool = False):
        self.accelerator, self.blocks = accelerator, blocks
        half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        # Autocast casts what each layer computes with; here only the weights are, so that half as many bytes are sent.
        precision = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        # Also the root's weights are freed after the forward pass, else a change of the shards would not reach them.
        pinned = accelerator.device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pinned) if cpu_offload else OffloadPolicy()
        self._shard = partial(fully_shard, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=True)
        group = distributed.new_group(backend="gloo")  # of the thread that saves, whose messages must not mix with those of training
        assert isinstance(group, distributed.ProcessGroup)
        self._group = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._unsharded: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []

    def place(self, network: nn.Module) -> None:
        network.to(self.accelerator.device)
        self._unsharded = [(module, type(module), _attributes(module)) for module in network.modules()]
        for module in list(network.modules()):
            if isinstance(module, self.blocks):
                self._shard(module)
        self._shard(network)

    def wrap(self, network: nn.Module) -> Any:
        return network

    def clip_grad_norm(self, network: nn.Module, limit: float) -> float | None:
        norm = nn.utils.clip_grad_norm_(network.parameters(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @contextmanager
    def gathered(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        sharded = [module for network in networks for module in network.modules() if isinstance(module, FSDPModule)]
        for module in sharded:
            module.unshard()
        hooked = [(module, type(module), _attributes(module)) for module, _, _ in self._unsharded]
        _set_attributes(self._unsharded)
        yield
        _set_attributes(hooked)
        for module in sharded:
            module.reshard()

    def save(self, folder: Path, step: int, state: TrainState, *, wait: bool) -> None:
        self._wait()
        target = checkpoint_path(folder, step)
        temporary = target.with_name(f".{target.name}")
        if self.accelerator.is_main_process:
            remove_unfinished(folder)
        self.accelerator.wait_for_everyone()
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in _tensors(state).items()}
        self._saving = self._thread.submit(self._write, copies, state.record(step), temporary, target)
        if wait:
            self._wait()

    def _write(self, tensors: dict[str, Tensor], record: dict[str, Any], temporary: Path, target: Path) -> None:
        """Each process writes its shares; then the first one hashes all files and renames the folder. Runs in the thread."""
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        try:
            save(tensors, storage_writer=writer, process_group=self._group)
            if self.accelerator.is_main_process:
                write_record(temporary, record)
                publish(temporary, target)
                remove_old(target.parent)
        except (CheckpointException, OSError):
            if self.accelerator.is_main_process:
                remove_unfinished(target.parent)
            raise

    def _wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises DaguerreError if it could not be written."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except (CheckpointException, OSError) as error:
            raise DaguerreError(f"Cannot write a checkpoint: {_reason(error)}. The earlier ones are kept; free some space.") from error

    def restore(self, folder: Path, state: TrainState) -> dict[str, Any]:
        found = verified_checkpoints(folder) if self.accelerator.is_main_process else iter(())
        damaged = None
        while chosen := self._from_main(next(found, None)):
            candidate, record = chosen
            require_same(record.get("identity", {}), state.identity, candidate)
            for optimizer in state.optimizers.values():
                _create_moments(optimizer)
            try:
                reader = HuggingFaceStorageReader(str(candidate))
                load(_tensors(state), storage_reader=reader, process_group=self._group)
            except CheckpointException as error:
                damaged = candidate
                announce(f"skipped the checkpoint {candidate}, which cannot be read: {_reason(error)}")
                continue
            if state.ema is not None:
                state.ema.updates = record["ema_updates"]
            return record
        if damaged is not None:
            raise DaguerreError(f"No checkpoint in {folder} can be read; choose another --out to start again.")
        return {}

    def _from_main(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        values = [value]
        distributed.broadcast_object_list(values, 0, self._group)
        return values[0]

    def finish(self, network: nn.Module) -> None:
        """The first process has all weights on the CPU afterwards; the others have an empty network, on the meta device."""
        self._wait()
        device = "cpu" if self.accelerator.is_main_process else "meta"
        whole = {name: _whole(tensor).to(device) for name, tensor in network.state_dict().items()}
        _set_attributes(self._unsharded)
        network.load_state_dict(whole, assign=True)


KEPT = ("_parameters", "_buffers", "training")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module apart from those in KEPT. `fully_shard` adds some, and hooks, which no function of torch removes."""
    return {name: copy(value) if isinstance(value, dict) else value for name, value in vars(module).items() if name not in KEPT}


def _set_attributes(modules: Iterable[tuple[nn.Module, type[nn.Module], dict[str, Any]]]) -> None:
    """Give modules the classes and attributes that they had at another time; they keep those in KEPT."""
    for module, kind, attributes in modules:
        kept = {name: vars(module)[name] for name in KEPT}
        module.__class__ = kind
        vars(module).clear()
        vars(module).update(attributes | kept)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _tensors(state: TrainState) -> dict[str, Tensor]:
    return {f"{kind}.{name}": tensor for kind, tensors in state.tensors().items() for name, tensor in tensors.items()}


def _create_moments(optimizer: torch.optim.Optimizer) -> None:
    """The state that an optimizer creates in its first step, by a step without effect."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the loop sets it in each step
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _reason(error: BaseException) -> str:
    """The first error of any process."""
    failures = getattr(error, "failures", {})
    return str(next((failure[0] for failure in failures.values()), error))
