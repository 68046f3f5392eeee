"""The training loop. A task yields its losses; the loop runs the backward pass and the optimizer.

    for each step:  batch = batches(seed, step);  for each loss of the task:  backward, clip, optimizer step;  update the EMA

The batch of step n depends only on (seed, n), the random numbers of a sample only on (seed, n) and its index in the batch, and the
learning rate only on n. So a checkpoint holds weights, optimizer state, EMA and loss scale, and a resumed run gives the same bits as an
uninterrupted one.
"""

import math
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from PIL import Image
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.runtime.dtype import has_native_bfloat16
from daguerre.training.batch_random import BatchRandom
from daguerre.training.checkpoint import TrainState, checkpoints
from daguerre.training.config import LoopConfig
from daguerre.training.distributed.parallel import DataParallel, Parallelism
from daguerre.training.distributed.processes import state as process_state
from daguerre.training.ema import EMA
from daguerre.training.micro_batch import find_parts
from daguerre.training.optimizers import Prodigy, make_optimizer
from daguerre.training.run_log import Means, RunLog

IDENTITY_FIELDS = (
    "batch_size",
    "betas",
    "ema_decay",
    "optimizer",
    "seed",
)  # a resumed run must have the same values; all other settings may change
VALIDATION_STEP = -1  # seeds the noise of the validation losses
DIVERGENCE_STEPS, DIVERGENCE_FACTOR = 20, 10  # a run stops if so many losses rise to so many times the first
MAX_BAD_STEPS = 5  # consecutive steps with a gradient that is not finite; after more of them the run stops


class TrainingTask(Protocol):
    """A model with its loss.

    `networks` are the trained networks by name, each with its own optimizer. A task may have an attribute `no_decay` with parameters that
    are exempt from weight decay, and a method `use_average(ema)` that gets the moving average, if there is one. A task of one large network
    may have an attribute `sharded_blocks`: the classes of its modules whose weights sharded training gathers one at a time.
    """

    networks: dict[str, nn.Module]

    @property
    def name(self) -> str:
        """The task's name in logs and checkpoints."""
        ...

    @property
    def ema_networks(self) -> tuple[str, ...]:
        """Names of the networks with an exponential moving average."""
        ...

    def to(self, device: torch.device) -> None:
        """Move everything that is not trained to a device."""
        ...

    def losses(
        self, batch: Any, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        """Yield (name of the network to update, loss, values to log). The loop updates that network before it asks for the next loss.

        Args:
            batch: what the batch stream yields.
            networks: `self.networks`, wrapped for distributed training; call these.
            random: the source of all random numbers of the batch.
            step: counts from 0.
        """
        ...

    def sample(self) -> Image.Image | None:
        """An image that shows the training progress, or None."""
        ...


class BatchStream(Protocol):
    """Batches that depend only on (seed, step)."""

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Any]:
        """Yield the batches of steps start, start + 1, …; a batch supports `len(batch)` and slices `batch[a:b]`."""
        ...


class Interrupted(DaguerreError):
    """SIGINT or SIGTERM stopped the run, after a checkpoint was written."""


def train(
    task: TrainingTask, batches: BatchStream, config: LoopConfig, out: Path, *, recipe: Any = None, validation: Iterable[Any] = ()
) -> None:
    """Train `task` for `config.max_train_steps` steps, starting from the newest checkpoint in `out`. The networks end with the EMA weights.

    Writes `out/checkpoints`, `out/samples`, `out/tensorboard` and `out/log.jsonl`. `recipe` is any JSON-able value that identifies the run:
    a checkpoint with another one is refused. A step with a gradient that is not finite is skipped and logged. `validation`: batches that
    are not trained on; the log has their mean loss, with the EMA weights and the same noise each time, so that the curve is smooth.

    Raises:
        DaguerreError: the loss is not finite or diverges, or the gradient of more than MAX_BAD_STEPS consecutive steps is not finite (the
            last checkpoints are kept); the checkpoint belongs to another run or has more steps; the disk is full.
        Interrupted: SIGINT or SIGTERM arrived; all processes stop after the same step.
    """
    with checkpointed(*task.networks.values()) if config.gradient_checkpointing else nullcontext():
        _train(task, batches, config, out, recipe, validation)


def _train(task: TrainingTask, batches: BatchStream, config: LoopConfig, out: Path, recipe: Any, validation: Iterable[Any]) -> None:
    accelerator = _accelerator(config)
    networks = dict(task.networks)
    parallel = _parallelism(config, task, accelerator)
    task.to(accelerator.device)
    for network in networks.values():
        parallel.place(network.train())
        if config.compile:
            network.compile()
    no_decay = getattr(task, "no_decay", ())
    optimizers = {name: make_optimizer(network, config, no_decay) for name, network in networks.items()}
    ema = EMA({name: networks[name] for name in task.ema_networks}, config.ema_decay) if config.ema_decay else None
    if ema is not None and hasattr(task, "use_average"):
        task.use_average(ema)  # pyright: ignore[reportAttributeAccessIssue]
    identity = {"task": task.name, **{name: getattr(config, name) for name in IDENTITY_FIELDS}, "recipe": recipe}
    if config.sharding != "none":  # its checkpoints have other files
        identity["sharding"] = config.sharding
    state = TrainState(networks, optimizers, ema, identity, accelerator.scaler)
    record = parallel.restore(out / "checkpoints", state)
    start, total = record.get("step", 0), config.max_train_steps
    if start > total:
        raise DaguerreError(
            f"{task.name} in {out} already has {start} training steps, more than the {total} requested; request at least {start}, or "
            "choose another --out."
        )
    if config.gradient_accumulation_steps == "auto":
        parts = record.get("parts", 0)  # as before, so that a resumed run has the same bits
        if not parts or config.batch_size // accelerator.num_processes % parts:
            parts = find_parts(task, next(batches.stream(start)), config, accelerator)
        state, config = replace(state, parts=parts), replace(config, gradient_accumulation_steps=parts)
    prepared = {name: (parallel.wrap(networks[name]), accelerator.prepare(optimizers[name])) for name in networks}
    gpus = [accelerator.device] if accelerator.device.type == "cuda" else []
    with (
        RunLog(out, task.name, start, total, accelerator.is_main_process) as log,
        _stop_signals() as stop_requested,
        torch.random.fork_rng(gpus),
    ):
        if config.mixed_precision == "bf16" and _native_precision() == "no":
            log.info(f"{task.name}: this processor has no bfloat16 instructions; --mixed-precision auto is several times faster")
        if start:
            log.info(f"{task.name}: {f'resuming after step {start}' if start < total else f'all {start} steps are already done'}")
        run = _Run(task, config, out, accelerator, parallel, prepared, state, log, validation)
        stream = log.watch(batches.stream(start, config.workers, processes=config.workers > 1))
        for step in range(start, total):
            batch = next(stream)
            run.step(step, batch)
            stopping = _any_rank(accelerator, stop_requested())
            run.write_log(step + 1, len(batch), stopping=stopping)
            run.checkpoint(step + 1, stopping=stopping)
    if ema is not None:
        ema.assign()
    for network in networks.values():
        parallel.finish(network)
        network.eval()


@dataclass(frozen=True)
class _Run:
    """Everything that stays the same from step to step."""

    task: TrainingTask
    config: LoopConfig
    out: Path
    accelerator: Accelerator
    parallel: Parallelism
    prepared: Mapping[str, tuple[Any, Any]]  # (network, optimizer), wrapped for distributed training
    state: TrainState
    log: RunLog
    validation: Iterable[Any] = ()
    means: Means = field(default_factory=Means)  # of the losses since the last line of the log
    first_losses: list[float] = field(default_factory=list)  # the first DIVERGENCE_STEPS ones
    last_losses: deque[float] = field(default_factory=lambda: deque(maxlen=DIVERGENCE_STEPS))
    bad_steps: Counter[str] = field(default_factory=Counter)  # consecutive gradients that are not finite, by network

    def step(self, step: int, batch: Any) -> None:
        """Update all networks once."""
        config, world, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index
        for _, optimizer in self.prepared.values():
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
        networks = {name: network for name, (network, _) in self.prepared.items()}
        share = len(batch) // (config.parts * world)
        for part in range(config.parts):
            first = (part * world + rank) * share
            random = BatchRandom.of_step(config.seed, step, len(batch), first, first + share)
            with self.accelerator.autocast():
                for name, loss, values in self.task.losses(batch[first : first + share], networks, random, step):
                    self.means.add({name: self._finite(loss, name, step), **values})
                    with torch.autocast(self.accelerator.device.type, enabled=False):
                        self.accelerator.backward(loss / config.parts)
                        if part == config.parts - 1:
                            self._update(name, step)
        if self.state.ema is not None:
            self.state.ema.update()

    def write_log(self, done: int, images: int, *, stopping: bool) -> None:
        """Log the mean losses and the losses of the validation images at their intervals, at the end, and before the run stops."""
        config, last = self.config, done == self.config.max_train_steps
        found = self._validate(done) if done % config.validation_every == 0 or last else {}
        if found or done % config.log_every == 0 or last or stopping:
            estimate = max((o.d for o in self.state.optimizers.values() if isinstance(o, Prodigy)), default=1.0)
            self.log.losses(done, images, {**self.means.take(), "learning rate": config.rate(done - 1) * estimate, **found})

    def checkpoint(self, done: int, *, stopping: bool) -> None:
        """Save a checkpoint and a sample image at their intervals. Raises Interrupted, after saving, if `stopping`."""
        config, last = self.config, done == self.config.max_train_steps
        if done % config.checkpoint_every == 0 or last or stopping:
            self.accelerator.wait_for_everyone()
            self.parallel.save(self.out / "checkpoints", done, self.state, wait=last or stopping)
        if config.sample_every and (done % config.sample_every == 0 or last):
            self._sample(done)
        if stopping and not last:
            self.accelerator.wait_for_everyone()
            raise Interrupted(f"Stopped after step {done} of {config.max_train_steps}; run the same command again to resume.")

    def _finite(self, loss: Tensor, name: str, step: int) -> float:
        """The mean loss over all processes, so that all of them raise if it is not finite."""
        value = float(self.accelerator.reduce(loss.detach(), "mean"))  # pyright: ignore[reportArgumentType]
        if not math.isfinite(value):
            raise self._failure(f"loss of {name!r} became {value}", step)
        self._require_no_divergence(value, step)
        return value

    def _require_no_divergence(self, loss: float, step: int) -> None:
        """Raise DaguerreError if the last losses are far above the first ones. The losses of adversaries have no such scale."""
        if len(self.prepared) > 1:
            return
        if len(self.first_losses) < DIVERGENCE_STEPS:
            self.first_losses.append(loss)
        self.last_losses.append(loss)
        first, last = fmean(self.first_losses), fmean(self.last_losses)
        if last - first > (DIVERGENCE_FACTOR - 1) * abs(first):
            raise self._failure(f"loss, as a mean of {DIVERGENCE_STEPS}, rose from {first:.4g} to {last:.4g}", step)

    def _update(self, name: str, step: int) -> None:
        """One optimizer step if the gradient is finite. In half precision the loss scaler decides, without a message."""
        network, optimizer = self.prepared[name]
        norm = self.parallel.clip_grad_norm(network, self.config.max_grad_norm or math.inf)
        if norm is not None and math.isfinite(norm):
            self.means.add({f"gradient norm {name}" if len(self.prepared) > 1 else "gradient norm": norm})
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(norm):
            self.bad_steps[name] += 1
            if self.bad_steps[name] > MAX_BAD_STEPS:
                raise self._failure(f"gradient of {name!r} became infinite or NaN, {MAX_BAD_STEPS + 1} times in a row,", step)
            self.log.info(f"{self.task.name}: skipped step {step} of {name!r}, whose gradient is not finite")
        else:
            self.bad_steps[name] = 0
            optimizer.step()
        optimizer.zero_grad()

    def _failure(self, what: str, step: int) -> DaguerreError:
        folder = self.out / "checkpoints"
        kept = f"The last checkpoints in {folder} are kept" if checkpoints(folder) else "There is no checkpoint yet"
        return DaguerreError(f"The {what} at step {step}. {kept}; try a lower learning rate or full precision.")

    def _sample(self, done: int) -> None:
        with self._evaluation() as is_main:
            image = self.task.sample() if is_main else None
        if image is not None:
            self.log.image(done, image)

    def _validate(self, done: int) -> dict[str, float]:
        """The mean losses of the validation batches, weighted by their sizes."""
        means = Means()
        with self._evaluation() as is_main:
            for number, batch in enumerate(self.validation if is_main else ()):
                random = BatchRandom.of_step(self.config.seed + number, VALIDATION_STEP, len(batch), 0, len(batch))
                with self.accelerator.autocast():
                    for name, loss, values in self.task.losses(batch, self.state.networks, random, done):
                        means.add({name: loss, **values}, weight=len(batch))
        return {f"validation {name}": value for name, value in means.take().items()}

    @contextmanager
    def _evaluation(self) -> Iterator[bool]:
        """Inside the block the networks are in evaluation mode with the EMA weights, and not compiled: compiling for other shapes takes
        longer than the block. All processes enter it; True in the one that evaluates."""
        networks = self.state.networks
        modes = {name: network.training for name, network in networks.items()}
        for network in networks.values():
            network.eval()
        averaged = self.state.ema.applied() if self.state.ema else nullcontext()
        with averaged, self.parallel.gathered(networks.values()), torch.compiler.set_stance("force_eager"):
            yield self.accelerator.is_main_process
        for name, network in networks.items():
            network.train(modes[name])


def _accelerator(config: LoopConfig) -> Accelerator:
    """Accelerate's view of devices and processes. Raises DaguerreError if the settings do not fit them."""
    process_state()
    # Each task of a recipe has its own precision, but Accelerate keeps the first one and has no public function to change it.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=_native_precision() if config.mixed_precision == "auto" else config.mixed_precision)
    kind, world = accelerator.distributed_type, accelerator.num_processes
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise DaguerreError(f"Training with {kind.value} is not supported; use one process or data-parallel processes.")
    if config.batch_size % (config.parts * world):
        raise DaguerreError(
            f"batch_size {config.batch_size} is not a multiple of gradient_accumulation_steps {config.parts} times {world} processes."
        )
    if config.optimizer == "adamw8bit" and accelerator.device.type != "cuda":
        raise DaguerreError(
            f"The optimizer adamw8bit needs a CUDA GPU, but the device is {accelerator.device.type}; adafactor needs still less memory."
        )
    if config.mixed_precision == "fp16" and accelerator.scaler is None:
        raise DaguerreError(f"mixed_precision fp16 needs a GPU, but the device is {accelerator.device.type}; use bf16 or no.")
    return accelerator


def _parallelism(config: LoopConfig, task: TrainingTask, accelerator: Accelerator) -> Parallelism:
    """What the settings ask for. Raises DaguerreError if the task cannot be sharded."""
    if config.sharding == "none":
        return DataParallel(accelerator)
    blocks = getattr(task, "sharded_blocks", ())
    if not blocks or len(task.networks) > 1:
        raise DaguerreError(
            f"--sharding fsdp is not for the training of a {task.name}, whose networks are small; leave it out. It is for ddpm, ldm, "
            "text-to-image, and dreambooth with --full."
        )
    from daguerre.training.distributed.sharding import FullySharded  # only here, because the import takes long

    return FullySharded(accelerator, blocks, cpu_offload=config.cpu_offload)


def _native_precision() -> str:
    """bf16 if the hardware has instructions for it, else no: emulated, a CPU step takes many times as long as in float32."""
    native = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else has_native_bfloat16()
    return "bf16" if native else "no"


def _any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """True in all processes if the flag is true in any of them, so that all stop after the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum"))


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Record the first SIGINT or SIGTERM as a request to stop after the step; the second one has its usual effect."""
    requested = False
    before = {}

    def request(number: int, frame: Any) -> None:
        nonlocal requested
        requested = True
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request)
    except ValueError:  # only the main thread may set signal handlers
        pass
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
