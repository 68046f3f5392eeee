"""Options of every recipe: the machine that it runs on. No torch."""

import os
import re
from dataclasses import dataclass
from typing import Annotated

from daguerre.cpu_threads import check_threads
from daguerre.errors import DaguerreError
from daguerre.training.config import optional

DEVICES = re.compile(r"cpu|mps|cuda(:(\d+))?")


@dataclass(frozen=True)
class MachineOptions:
    device: Annotated[str | None, optional("DEVICE")] = None  # cpu, cuda, cuda:1 or mps. Default: a GPU if there is one.
    # Number of CPU threads. Default: that of the run if it is resumed, else one for each free core.
    threads: Annotated[int | None, optional("INT")] = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.device is not None and not DEVICES.fullmatch(self.device):
            raise DaguerreError(f"The device {self.device!r} is not known; use cpu, cuda, cuda:1 or mps.")
        if self.device is not None and ":" in self.device and "RANK" in os.environ:
            raise DaguerreError("A launcher gives each process its own GPU; use --device cuda, or leave it out.")

    def apply(self) -> None:
        """Hide all other devices from this process: PyTorch, Accelerate and every part of a recipe then use this one.

        It must run before the first use of a GPU. Raises DaguerreError if the device is not available.
        """
        if self.device is None:
            return
        kind, _, index = self.device.partition(":")
        if kind != "cuda":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif index:
            os.environ["CUDA_VISIBLE_DEVICES"] = index
        if kind == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"
            return
        import torch

        available = torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
        if not available:
            raise DaguerreError(f"The device {self.device!r} is not available on this machine; leave out --device, or use cpu.")
