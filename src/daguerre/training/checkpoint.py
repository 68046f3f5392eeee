"""Checkpoints that survive `kill -9`: written to a temporary directory, fsynced, renamed, and loaded only if every hash matches.

A checkpoint is a directory `step-00001200/` with safetensors (networks, optimizers, averages) and a `state.json` with the step, the
identity of the run, the state of the loss scaler and the SHA-256 of each file. It contains no pickles.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from daguerre.atomic_io import atomic_path
from daguerre.training.ema import EMA
from daguerre.training.run_identity import require_same, to_plain_values
from daguerre.weights.tensors.safetensors import write_safetensors

MAX_CHECKPOINTS = 2  # the newest, and one in case it is damaged


@dataclass(frozen=True)
class TrainState:
    """Everything that a run needs to resume with identical results."""

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    ema: EMA | None
    identity: Mapping[str, Any]  # of the run, JSON-able: a checkpoint with another identity is refused
    scaler: torch.amp.GradScaler | None = None  # of mixed precision in float16
    parts: int = 0  # that a batch is split into, if they were found by trying

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of the state itself, not copies."""
        return {
            "networks": {f"{name}.{k}": v for name, m in self.networks.items() for k, v in m.state_dict().items()},
            "optimizers": _flatten_optimizers(self.optimizers),
            "averages": dict(self.ema.averaged) if self.ema is not None else {},
        }

    def record(self, step: int) -> dict[str, Any]:
        """Everything else, after `step` steps, as JSON-able values."""
        return {
            "step": step,
            "parts": self.parts,
            "identity": to_plain_values(self.identity),
            "ema_updates": self.ema.updates if self.ema else 0,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }


def save_checkpoint(folder: Path, step: int, state: TrainState) -> Path:
    """Write `folder/step-…` after `step` steps and delete all but the newest checkpoints. Raises DaguerreError if the disk is full."""
    target = checkpoint_path(folder, step)
    remove_unfinished(folder)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for kind, tensors in state.tensors().items():
            write_safetensors(temporary / f"{kind}.safetensors", tensors)
        write_record(temporary, state.record(step))
    remove_old(folder)
    return target


def restore_checkpoint(folder: Path, state: TrainState, *, shown: bool = True) -> dict[str, Any]:
    """Load the newest undamaged checkpoint in `folder`; return its record, {} if there is none. `shown`: name the damaged ones on stderr.

    Raises DaguerreError, naming the values that differ, if the checkpoint belongs to another run.
    """
    for candidate, record in verified_checkpoints(folder, shown=shown):
        require_same(record.get("identity", {}), state.identity, candidate)
        networks = load_file(candidate / "networks.safetensors")
        for name, module in state.networks.items():
            module.load_state_dict(_with_prefix(networks, name), strict=True)
        _restore_optimizers(state.optimizers, load_file(candidate / "optimizers.safetensors"))
        if state.ema is not None:
            state.ema.load(load_file(candidate / "averages.safetensors"), record["ema_updates"])
        if state.scaler is not None and record["scaler"] is not None:
            state.scaler.load_state_dict(record["scaler"])
        return record
    return {}


def checkpoint_path(folder: Path, step: int) -> Path:
    """The directory of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}"


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left."""
    for unfinished in (*folder.glob(".step-*"), *folder.glob(".daguerre-*")):
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_old(folder: Path) -> None:
    """Delete all but the newest checkpoints."""
    for old in checkpoints(folder)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `state.json` with the hashes of all files in the folder of a checkpoint."""
    hashes = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / "state.json").write_text(json.dumps({**record, "sha256": hashes}, indent=1))


def verified_checkpoints(folder: Path, *, shown: bool = True) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the undamaged checkpoints with their records, the newest first. `shown`: name the damaged ones on stderr."""
    for candidate in reversed(checkpoints(folder)):
        record = _verified(candidate)
        if record is not None:
            yield candidate, record
        elif shown:
            print(f"skipped the checkpoint {candidate}, which is damaged or incomplete", file=sys.stderr)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint directories in `folder`, oldest first."""
    return sorted(folder.glob("step-[0-9]*")) if folder.is_dir() else []


def _verified(candidate: Path) -> dict[str, Any] | None:
    """The checkpoint's record if every file has its recorded hash, else None."""
    try:
        record = json.loads((candidate / "state.json").read_text())
        whole = all(_sha256(candidate / name) == digest for name, digest in record["sha256"].items())
    except (OSError, ValueError, KeyError):
        return None
    return record if whole else None


def _with_prefix(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")}


def _flatten_optimizers(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every state tensor as `optimizer.parameter index.name`; the settings come from the config and are not saved."""
    return {
        f"{name}.{index}.{key}": torch.as_tensor(value)
        for name, optimizer in optimizers.items()
        for index, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    for name, optimizer in optimizers.items():
        parameters = _parameters(optimizer)
        state: dict[int, dict[str, Tensor | int]] = {}
        for key, value in _with_prefix(tensors, name).items():
            index, field = key.split(".", 1)
            state.setdefault(int(index), {})[field] = _as_in_memory(parameters[int(index)], value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _as_in_memory(parameter: Tensor, value: Tensor) -> Tensor | int:
    """A value of an optimizer's state as it was before it was saved as a tensor: a whole number, such as a count of steps; or a moment with
    its parameter's memory format, which the file does not record and the fused optimizer step needs."""
    if value.dtype == torch.int64 and not value.ndim:
        return int(value)
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value) if value.shape == parameter.shape else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
