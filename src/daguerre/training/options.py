"""What a training can be told: plain values, from which the command line is made, so that nothing here imports torch."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast and how carefully. Presets derive with `dataclasses.replace`."""

    steps: int = 1000  # optimiser steps in all
    batch_size: int = 64  # pictures per step, over all processes and accumulated parts together
    accumulate: int = 1  # parts that a step's batch is split into, for less memory
    learning_rate: float = 1e-4
    warmup: int = 100  # steps of linear rise
    decay: float = 0.2  # share of the run, at its end, over which the rate falls linearly to 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm; 0 = off
    ema: float = 0.999  # 0 = off
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False  # torch.compile the networks; needs a C++ compiler on a CPU
    workers: int = 1  # that draw batches ahead: a thread, or so many processes
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500  # 0 = never
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        for name in ("learning_rate", "warmup", "weight_decay", "clip", "sample_every", "workers", "seed"):
            if not 0 <= getattr(self, name) < inf:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name, share in (("decay", self.decay), ("ema", self.ema), ("the first of betas", self.betas[0]), ("the second", self.betas[1])):
            if not 0 <= share <= 1:
                raise DaguerreError(f"{name} is {share}; it must lie between 0 and 1.")
        if self.batch_size % self.accumulate:
            raise DaguerreError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}.")

    def rate(self, step: int) -> float:
        """The learning rate of step `step`: a linear rise, a plateau, a linear fall."""
        rise = (step + 1) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay * self.steps, 1)
        return self.learning_rate * min(1.0, rise, fall)
