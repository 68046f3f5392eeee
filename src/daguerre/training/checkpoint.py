"""Checkpoints that a `kill -9` at any moment leaves whole: written beside, fsynced, renamed, and read back only if every hash agrees.

One checkpoint is a folder `step-00001200/` of safetensors (networks, optimizers, averages) and a `state.json` that tells the step, the
run it belongs to, the state of half precision's loss scale, and the SHA-256 of each file. Nothing in it is a pickle.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
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

KEEP = 2  # the newest, and one to fall back to


@dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on as if it had never stopped."""

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    ema: EMA | None
    identity: Mapping[str, Any]  # what the run is, JSON-able: a checkpoint of another one is refused
    scaler: torch.amp.GradScaler | None = None  # of half precision


def save_checkpoint(folder: Path, step: int, state: TrainState) -> Path:
    """Write `folder/step-…` after `step` steps and drop all but the newest checkpoints. Raises DaguerreError if the disk is full."""
    target = folder / f"step-{step:08d}"
    for unfinished in folder.glob(".step-*"):  # left by a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    files = {
        "networks.safetensors": {f"{name}.{k}": v for name, m in state.networks.items() for k, v in m.state_dict().items()},
        "optimizers.safetensors": _flatten_optimizers(state.optimizers),
        "averages.safetensors": dict(state.ema.averaged) if state.ema is not None else {},
    }
    with atomic_path(target) as beside:
        beside.mkdir()
        for name, tensors in files.items():
            write_safetensors(beside / name, tensors)
        record = {
            "step": step,
            "identity": to_plain_values(state.identity),
            "ema_updates": state.ema.updates if state.ema else 0,
            "scaler": state.scaler.state_dict() if state.scaler else None,
            "sha256": {name: _sha256(beside / name) for name in files},
        }
        (beside / "state.json").write_text(json.dumps(record, indent=1))
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def restore_checkpoint(folder: Path, state: TrainState) -> int:
    """Load the newest checkpoint of `folder` that is whole; return its step, or 0 where there is none.

    Raises DaguerreError, naming what differs, where the checkpoint belongs to another run.
    """
    for candidate in reversed(checkpoints(folder)):
        record = _verified(candidate)
        if record is None:
            continue
        require_same(record.get("identity", {}), state.identity, candidate)
        networks = load_file(candidate / "networks.safetensors")
        for name, module in state.networks.items():
            module.load_state_dict(_under(networks, name), strict=True)
        _restore_optimizers(state.optimizers, load_file(candidate / "optimizers.safetensors"))
        if state.ema is not None:
            state.ema.load(load_file(candidate / "averages.safetensors"), record["ema_updates"])
        if state.scaler is not None and record["scaler"] is not None:
            state.scaler.load_state_dict(record["scaler"])
        return record["step"]
    return 0


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, oldest first."""
    return sorted(folder.glob("step-[0-9]*")) if folder.is_dir() else []


def _verified(candidate: Path) -> dict[str, Any] | None:
    """The checkpoint's record if every file is there with the hash it was written with, else None."""
    try:
        record = json.loads((candidate / "state.json").read_text())
        whole = all(_sha256(candidate / name) == digest for name, digest in record["sha256"].items())
    except (OSError, ValueError, KeyError):
        return None
    return record if whole else None


def _under(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")}


def _flatten_optimizers(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every state tensor as `optimizer.parameter index.name`; settings are the recipe's and are not saved."""
    return {
        f"{name}.{index}.{key}": torch.as_tensor(value)
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def _restore_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, name).items():
            index, field = key.split(".", 1)
            state.setdefault(int(index), {})[field] = _in_the_order_of(parameters[int(index)], value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _in_the_order_of(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in its parameter's order of dimensions, which the file does not keep: a fused step walks through both as they lie."""
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value) if value.shape == parameter.shape else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
