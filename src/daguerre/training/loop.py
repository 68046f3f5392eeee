"""The one training loop. A stage yields its losses; the loop does the rest.

    for each step:  batch = batches(seed, step);  for each loss the stage yields:  backward, clip, optimiser step;  average the weights

Every random number of step n comes from generators seeded by (seed, n), every batch is a pure function of (seed, n), and the learning rate
is a function of n. So nothing but weights, optimiser state and averages has to be saved, and a resumed run ends in the same bits as one
that never stopped.
"""

import hashlib
import json
import math
import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.training.checkpoint import Checkpointed, checkpoints, restore_checkpoint, save_checkpoint
from daguerre.training.ema import EMA
from daguerre.training.log import RunLog


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
        for name in ("learning_rate", "warmup", "decay", "clip", "ema", "sample_every", "workers"):
            if getattr(self, name) < 0:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.batch_size % self.accumulate:
            raise DaguerreError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}.")

    def rate(self, step: int) -> float:
        """The learning rate of step `step`: a linear rise, a plateau, a linear fall."""
        rise = (step + 1) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay * self.steps, 1)
        return self.learning_rate * min(1.0, rise, fall)


class Stage(Protocol):
    """What is trained, and how it is scored.

    `networks` are the trained ones by name, each with an optimiser of its own; while it runs, the loop puts the wrapped modules there.
    Parameters in an attribute `undecayed`, where a stage has one, are spared from weight decay.
    """

    networks: dict[str, nn.Module]

    @property
    def name(self) -> str:
        """The stage's own, in logs and checkpoints."""
        ...

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of the networks whose average is kept."""
        ...

    def to(self, device: torch.device) -> None:
        """Move what is not trained."""
        ...

    def losses(self, batch: Any, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        """Yield (network to step, loss, values to log) one after another. The loop steps that network's optimiser before it asks on."""
        ...

    def sample(self) -> Image.Image | None:
        """A picture that shows how far training is, or None."""
        ...


class Batches(Protocol):
    """Batches whose order is a pure function of (seed, step)."""

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Any]:
        """Yield the batches of steps start, start + 1, …; each can be sliced (`batch[a:b]`) and measured (`len(batch)`)."""
        ...


class Stopped(DaguerreError):
    """The person asked the run to stop; a checkpoint was written first."""


def fingerprint(*values: Any) -> str:
    """A short hash of JSON-able settings, to recognise the checkpoints of one run."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


@torch.no_grad()
def weights_key(module: nn.Module) -> str:
    """A fingerprint of a module's weights."""
    return fingerprint(
        [(name, float(value.double().sum()), float(value.double().abs().sum())) for name, value in module.state_dict().items()]
    )


def train(stage: Stage, batches: Batches, config: LoopConfig, out: Path, *, recipe: Any = None) -> None:
    """Train `stage` for `config.steps` steps, from the last checkpoint in `out` if there is one. Ends with the averaged weights in place.

    Writes `out/checkpoints`, `out/samples`, `out/curves` and `out/log.jsonl`. `recipe` is whatever else decides the result (JSON-able or a
    dataclass): together with the settings it tells whether a checkpoint belongs to this run.

    Raises DaguerreError if the loss is not finite (the last good checkpoint stays), if the checkpoint is another recipe's or cannot be
    written; Stopped after SIGINT or SIGTERM.
    """
    accelerator = Accelerator(mixed_precision=config.precision)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise DaguerreError(f"Training under {accelerator.distributed_type.value} is not supported; use one process or data-parallel ones.")
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.batch_size % (config.accumulate * world):
        raise DaguerreError(f"batch_size {config.batch_size} is not a multiple of {config.accumulate} parts x {world} processes.")

    plain = dict(stage.networks)
    for network in plain.values():
        network.to(accelerator.device).train()
        if config.compile:
            network.compile()
    stage.to(accelerator.device)
    spared = getattr(stage, "undecayed", ())
    optimizers = {name: _optimizer(network, config, spared) for name, network in plain.items()}
    ema = EMA({name: plain[name] for name in stage.averaged}, config.ema) if config.ema else None
    # How often to log, sample and save may change between two parts of one run; so may its end, before the rate begins to fall.
    decides = asdict(replace(config, log_every=1, sample_every=0, checkpoint_every=1, steps=1, compile=False, workers=1))
    state = Checkpointed(plain, optimizers, ema, fingerprint(stage.name, decides, recipe))
    start = restore_checkpoint(out / "checkpoints", state)
    prepared = {name: (accelerator.prepare(plain[name]), accelerator.prepare(optimizers[name])) for name in plain}
    stage.networks.update({name: network for name, (network, _) in prepared.items()})

    with RunLog(out, stage.name, start, config.steps, accelerator.is_main_process) as log, _stop_signals() as asked_to_stop:
        if start:
            log.say(f"{stage.name}: continued after step {start}")
        stream = batches.stream(start, config.workers, processes=config.workers > 1)
        for step in range(start, config.steps):
            batch, losses = next(stream), {}
            for _, optimizer in prepared.values():
                for group in optimizer.param_groups:
                    group["lr"] = config.rate(step)
            for part in range(config.accumulate):
                share = len(batch) // (config.accumulate * world)
                first = (part * world + rank) * share
                draw = _generator(config.seed, step, part, rank)
                with accelerator.autocast():
                    yielded = stage.losses(batch[first : first + share], draw, step)
                    for name, loss, values in yielded:
                        _require_finite(loss, name, step, out)
                        with torch.autocast(accelerator.device.type, enabled=False):
                            accelerator.backward(loss / config.accumulate)
                            if part == config.accumulate - 1 and not _update(accelerator, *prepared[name], config.clip):
                                raise _not_finite(f"gradient of {name!r} became infinite or NaN", step, out)
                        losses |= {name: loss.detach(), **values}
            if ema is not None:
                ema.update()
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                log.losses(done, len(batch), {k: float(v) for k, v in losses.items()})
            stopping = asked_to_stop()
            if done % config.checkpoint_every == 0 or done == config.steps or stopping:
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    save_checkpoint(out / "checkpoints", done, state)
            if accelerator.is_main_process and config.sample_every and (done % config.sample_every == 0 or done == config.steps):
                _log_sample(stage, plain, ema, log, done)
            if stopping and done < config.steps:
                raise Stopped(f"Stopped after step {done} of {config.steps}; run the same command again to go on from there.")
    stage.networks.update(plain)
    if ema is not None:
        ema.assign()
    for network in plain.values():
        network.eval()


def _optimizer(network: nn.Module, config: LoopConfig, spared: Collection[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW that spares vectors (biases, norms, single embeddings' scales) from weight decay, and what the stage spares."""
    exempt = {id(p) for p in spared}
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in exempt]
    others = [p for p in trained if p.ndim <= 1 or id(p) in exempt]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _update(accelerator: Accelerator, network: nn.Module, optimizer: Any, clip: float) -> bool:
    """One optimiser step, or none and False where the gradient is not finite (half precision's scaler then deals with it itself)."""
    norm = accelerator.clip_grad_norm_(network.parameters(), clip or math.inf)
    if accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
        return False
    optimizer.step()
    optimizer.zero_grad()
    return True


def _generator(seed: int, step: int, part: int, rank: int) -> torch.Generator:
    """The randomness of one part of one step, on the CPU so that it is the same on every device; dropout's global generator too."""
    mixed = int.from_bytes(hashlib.blake2b(f"{seed} {step} {part} {rank}".encode(), digest_size=8).digest(), "little") >> 1
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def _require_finite(loss: Tensor, name: str, step: int, out: Path) -> None:
    if not math.isfinite(loss.item()):
        raise _not_finite(f"loss of {name!r} became {loss.item()}", step, out)


def _not_finite(what: str, step: int, out: Path) -> DaguerreError:
    folder = out / "checkpoints"
    kept = f"The last good checkpoint in {folder} is kept" if checkpoints(folder) else "No checkpoint was written yet"
    return DaguerreError(f"The {what} at step {step}. {kept}; try a lower learning rate or full precision with another --out.")


def _log_sample(stage: Stage, plain: Mapping[str, nn.Module], ema: EMA | None, log: RunLog, done: int) -> None:
    modes = {name: network.training for name, network in plain.items()}
    for network in plain.values():
        network.eval()
    try:
        if ema is None:
            picture = stage.sample()
        else:
            with ema.applied():
                picture = stage.sample()
        if picture is not None:
            log.picture(done, picture)
    finally:
        for name, network in plain.items():
            network.train(modes[name])


@contextmanager
def _stop_signals() -> Iterator[Any]:
    """Turn the first SIGINT or SIGTERM into a wish to stop after the step; the second acts as usual."""
    asked = False
    before = {}

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
