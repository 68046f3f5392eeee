"""How a training uses its processes: what the loop does differently if each has the whole network or only a share of it."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from daguerre.training.checkpoint import TrainState, restore_checkpoint, save_checkpoint


class Parallelism(Protocol):
    """All processes call each of these."""

    def place(self, network: nn.Module) -> None:
        """Move a network to its device in place, before it gets an optimizer."""
        ...

    def wrap(self, network: nn.Module) -> Any:
        """The network as the loop calls it in training."""
        ...

    def clip_grad_norm(self, network: nn.Module, limit: float) -> float | None:
        """Scale the gradient down to a norm of at most `limit`; return its norm before, if known."""
        ...

    def gathered(self, networks: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """Inside the block each process has all weights and may call the networks without the others; gradients are not possible."""
        ...

    def save(self, folder: Path, step: int, state: TrainState, *, wait: bool) -> None:
        """Save a checkpoint. wait: return after it is on the disk, not before. Raises DaguerreError if this or the last one failed."""
        ...

    def restore(self, folder: Path, state: TrainState) -> dict[str, Any]:
        """Load the newest undamaged checkpoint; return its record, empty if there is none (see `restore_checkpoint`)."""
        ...

    def finish(self, network: nn.Module) -> None:
        """Make it an ordinary network again, whole at least in the first process."""
        ...


@dataclass(frozen=True)
class DataParallel:
    """Each process has the whole networks; the first one saves them. Also for a single process."""

    accelerator: Accelerator

    def place(self, network: nn.Module) -> None:
        network.to(self.accelerator.device)
        if self.accelerator.device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # 10 % faster steps of a UNet

    def wrap(self, network: nn.Module) -> Any:
        return self.accelerator.prepare(network)

    def clip_grad_norm(self, network: nn.Module, limit: float) -> float | None:
        norm = self.accelerator.clip_grad_norm_(network.parameters(), limit)
        return None if norm is None else float(norm)

    def gathered(self, networks: Iterable[nn.Module]) -> AbstractContextManager[None]:
        return nullcontext()

    def save(self, folder: Path, step: int, state: TrainState, *, wait: bool) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(folder, step, state)

    def restore(self, folder: Path, state: TrainState) -> dict[str, Any]:
        return restore_checkpoint(folder, state, shown=self.accelerator.is_main_process)

    def finish(self, network: nn.Module) -> None:
        pass
