"""The one training loop. A stage yields its losses; the loop does the rest.

    for each step:  batch = batches(seed, step);  for each loss the stage yields:  backward, clip, optimiser step;  average the weights

Every random number of step n comes from generators seeded by (seed, n), every batch is a pure function of (seed, n), and the learning rate
is a function of n. So nothing but weights, optimiser state, averages and half precision's scale has to be saved, and a resumed run ends in
the same bits as one that never stopped.
"""

import hashlib
import json
import math
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from PIL import Image
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.runtime.dtype import has_native_bfloat16
from daguerre.training.checkpoint import TrainState, checkpoints, restore_checkpoint, save_checkpoint
from daguerre.training.config import LoopConfig
from daguerre.training.ema import EMA
from daguerre.training.run_log import RunLog

# The settings that give what was saved its meaning; all others may change between two parts of one run.
IDENTITY_FIELDS = ("batch_size", "betas", "ema_decay", "seed")
MAX_BAD_STEPS = 5  # gradients that are not finite, one after another, whose steps are left out; of so many more the weights are the cause


class TrainingTask(Protocol):
    """What is trained, and how it is scored.

    `networks` are the trained ones by name, each with an optimiser of its own; while it runs, the loop puts the wrapped modules there.
    Parameters in an attribute `no_decay`, where a stage has one, are spared from weight decay.
    """

    networks: dict[str, nn.Module]

    @property
    def name(self) -> str:
        """The stage's own, in logs and checkpoints."""
        ...

    @property
    def ema_networks(self) -> tuple[str, ...]:
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


class BatchStream(Protocol):
    """Batches whose order is a pure function of (seed, step)."""

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Any]:
        """Yield the batches of steps start, start + 1, …; each can be sliced (`batch[a:b]`) and measured (`len(batch)`)."""
        ...


class Interrupted(DaguerreError):
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


def train(stage: TrainingTask, batches: BatchStream, config: LoopConfig, out: Path, *, recipe: Any = None) -> None:
    """Train `stage` for `config.steps` steps, from the last checkpoint in `out` if there is one. Ends with the averaged weights in place.

    Writes `out/checkpoints`, `out/samples`, `out/curves` and `out/log.jsonl`. `recipe` is whatever else decides the result, best as named
    JSON-able values: with those of the settings that give a checkpoint its meaning, it tells whether one belongs to this run.

    A step whose gradient is not finite is left out and told. Raises DaguerreError if the loss is not finite, or more than FORGIVEN
    gradients in a row are not (the last good checkpoint stays), if the checkpoint is another run's or is further than `config.steps`, if
    the disk is full; Stopped after SIGINT or SIGTERM, in all processes after the same step.
    """
    accelerator = _accelerator(config)
    plain = dict(stage.networks)
    for network in plain.values():
        network.to(accelerator.device).train()
        if accelerator.device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # a tenth of a UNet's step, as in `files.laid_out`
        if config.compile:
            network.compile()
    stage.to(accelerator.device)
    spared = getattr(stage, "no_decay", ())
    optimizers = {name: _optimizer(network, config, spared) for name, network in plain.items()}
    ema = EMA({name: plain[name] for name in stage.ema_networks}, config.ema_decay) if config.ema_decay else None
    meaning = {"stage": stage.name, **{name: getattr(config, name) for name in IDENTITY_FIELDS}, "recipe": recipe}
    state = TrainState(plain, optimizers, ema, meaning, accelerator.scaler)
    start = restore_checkpoint(out / "checkpoints", state)
    if start > config.max_train_steps:
        raise DaguerreError(
            f"{stage.name} in {out} was trained for {start} steps already, more than the {config.max_train_steps} asked for; ask for at least "
            f"{start}, or choose another --out."
        )
    prepared = {name: (accelerator.prepare(plain[name]), accelerator.prepare(optimizers[name])) for name in plain}
    stage.networks.update({name: network for name, (network, _) in prepared.items()})
    with RunLog(out, stage.name, start, config.max_train_steps, accelerator.is_main_process) as log, _stop_signals() as asked_to_stop:
        if config.mixed_precision == "bf16" and _native_precision() == "no":
            log.info(f"{stage.name}: there are no instructions for bf16 here; with --precision auto a step takes a fraction of the time")
        if start:
            log.info(
                f"{stage.name}: {f'continued after step {start}' if start < config.max_train_steps else f'all {start} steps were done before'}"
            )
        run = _Run(stage, config, out, accelerator, prepared, state, log)
        stream = batches.stream(start, config.workers, processes=config.workers > 1)
        for step in range(start, config.max_train_steps):
            run.step(step, next(stream))
            run.checkpoint(step + 1, stopping=_any_rank(accelerator, asked_to_stop()))
    stage.networks.update(plain)
    if ema is not None:
        ema.assign()
    for network in plain.values():
        network.eval()


@dataclass(frozen=True)
class _Run:
    """What is the same in every step."""

    stage: TrainingTask
    config: LoopConfig
    out: Path
    accelerator: Accelerator
    prepared: Mapping[str, tuple[Any, Any]]  # each network and its optimiser, as several processes need them
    state: TrainState
    log: RunLog
    bad_steps: Counter[str] = field(default_factory=Counter)  # gradients in a row that were not finite, by network

    def step(self, step: int, batch: Any) -> None:
        """Take one step, of all networks, and log it."""
        config, world, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        for _, optimizer in self.prepared.values():
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
        logged: dict[str, Tensor | float] = {}
        share = len(batch) // (config.gradient_accumulation_steps * world)
        for part in range(config.gradient_accumulation_steps):
            first = (part * world + rank) * share
            draw = _generator(config.seed, step, part, rank)
            with self.accelerator.autocast():
                for name, loss, values in self.stage.losses(batch[first : first + share], draw, step):
                    logged |= {name: self._finite(loss, name, step), **values}
                    with torch.autocast(self.accelerator.device.type, enabled=False):
                        self.accelerator.backward(loss / config.gradient_accumulation_steps)
                        if part == config.gradient_accumulation_steps - 1:
                            self._update(name, step)
        if self.state.ema is not None:
            self.state.ema.update()
        done = step + 1
        if done % config.log_every == 0 or done == config.max_train_steps:
            self.log.losses(done, len(batch), {name: float(value) for name, value in logged.items()})

    def checkpoint(self, done: int, *, stopping: bool) -> None:
        """Save a checkpoint and a sample where it is time for them. Raises Stopped, once all is written, if the run is to stop."""
        config, last = self.config, done == self.config.max_train_steps
        if done % config.checkpoint_every == 0 or last or stopping:
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                save_checkpoint(self.out / "checkpoints", done, self.state)
        if self.accelerator.is_main_process and config.sample_every and (done % config.sample_every == 0 or last):
            self._sample(done)
        if stopping and not last:
            self.accelerator.wait_for_everyone()
            raise Interrupted(f"Stopped after step {done} of {config.max_train_steps}; run the same command again to go on from there.")

    def _finite(self, loss: Tensor, name: str, step: int) -> float:
        """The loss, as the mean over all processes: so that all of them, and not one, find that it is not finite."""
        value = float(self.accelerator.reduce(loss.detach(), "mean"))  # pyright: ignore[reportArgumentType]
        if not math.isfinite(value):
            raise self._not_finite(f"loss of {name!r} became {value}", step)
        return value

    def _update(self, name: str, step: int) -> None:
        """One optimiser step if the gradient is finite; if not, it is left out: in half precision by the scaler, silently."""
        network, optimizer = self.prepared[name]
        norm = self.accelerator.clip_grad_norm_(network.parameters(), self.config.max_grad_norm or math.inf)
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
            self.bad_steps[name] += 1
            if self.bad_steps[name] > MAX_BAD_STEPS:
                raise self._not_finite(f"gradient of {name!r} became infinite or NaN, {MAX_BAD_STEPS + 1} times in a row,", step)
            self.log.info(f"{self.stage.name}: the gradient of {name!r} is not finite at step {step}, which is left out")
        else:
            self.bad_steps[name] = 0
            optimizer.step()
        optimizer.zero_grad()

    def _not_finite(self, what: str, step: int) -> DaguerreError:
        folder = self.out / "checkpoints"
        kept = f"The last good checkpoint in {folder} is kept" if checkpoints(folder) else "No checkpoint was written yet"
        return DaguerreError(f"The {what} at step {step}. {kept}; try again with a lower learning rate or in full precision.")

    def _sample(self, done: int) -> None:
        networks = self.state.networks
        modes = {name: network.training for name, network in networks.items()}
        for network in networks.values():
            network.eval()
        with self.state.ema.applied() if self.state.ema else nullcontext(), torch.compiler.set_stance("force_eager"):
            picture = self.stage.sample()  # compiling for its shapes takes longer than it
        for name, network in networks.items():
            network.train(modes[name])
        if picture is not None:
            self.log.image(done, picture)


def _accelerator(config: LoopConfig) -> Accelerator:
    """What knows the devices and processes. Raises DaguerreError where the settings do not fit them."""
    AcceleratorState._reset_state()  # which would keep the precision of the stage before
    accelerator = Accelerator(mixed_precision=_native_precision() if config.mixed_precision == "auto" else config.mixed_precision)
    kind, world = accelerator.distributed_type, accelerator.num_processes
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise DaguerreError(f"Training under {kind.value} is not supported; use one process or data-parallel ones.")
    if config.batch_size % (config.gradient_accumulation_steps * world):
        raise DaguerreError(
            f"batch_size {config.batch_size} is not a multiple of {config.gradient_accumulation_steps} parts x {world} processes."
        )
    if config.mixed_precision == "fp16" and accelerator.scaler is None:
        raise DaguerreError(f"precision fp16 needs a GPU, and this is the {accelerator.device.type}; use bf16 or no.")
    return accelerator


def _native_precision() -> str:
    """bf16 where there are instructions for it: without them a step on a CPU takes many times as long as in float32."""
    has = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else has_native_bfloat16()
    return "bf16" if has else "no"


def _any_rank(accelerator: Accelerator, wish: bool) -> bool:
    """Whether any process wishes to stop: all learn it at the same step, for one alone would leave the others waiting."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device), "sum"))


def _optimizer(network: nn.Module, config: LoopConfig, spared: Collection[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW that spares vectors (biases, norms, single embeddings' scales) from weight decay, and what the stage spares."""
    exempt = {id(p) for p in spared}
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in exempt]
    others = [p for p in trained if p.ndim <= 1 or id(p) in exempt]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _generator(seed: int, step: int, part: int, rank: int) -> torch.Generator:
    """The randomness of one part of one step, on the CPU so that it is the same on every device; dropout's global generator too."""
    mixed = int.from_bytes(hashlib.blake2b(f"{seed} {step} {part} {rank}".encode(), digest_size=8).digest(), "little") >> 1
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
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
