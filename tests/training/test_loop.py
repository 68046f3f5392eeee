"""The loop: an interrupted run resumes exactly, bad gradients leave the last checkpoint, errors are one sentence."""

import json
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from daguerre.errors import DaguerreError
from daguerre.training.batch_random import BatchRandom
from daguerre.training.checkpoint import checkpoints
from daguerre.training.config import LoopConfig
from daguerre.training.loop import Interrupted, train

CONFIG = LoopConfig(
    max_train_steps=12, batch_size=8, learning_rate=1e-2, lr_warmup_steps=3, log_every=4, sample_every=0, checkpoint_every=4, ema_decay=0.9
)


@dataclass(frozen=True)
class Numbers:
    x: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, part: slice) -> "Numbers":
        return Numbers(self.x[part])


class NumberBatches:
    """Random vectors that depend only on the step."""

    def __init__(self, size: int = 8, nan_at: int | None = None):
        self.size, self.nan_at = size, nan_at

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Numbers]:
        while True:
            x = torch.randn(self.size, 4, generator=torch.Generator().manual_seed(start))
            yield Numbers(x * float("nan") if start == self.nan_at else x)
            start += 1


class TwoNetworks:
    """A network with dropout and noise, then a second one on its detached output, as in adversarial training."""

    name = "two"
    ema_networks = ("first",)

    def __init__(self) -> None:
        torch.manual_seed(0)
        conv = nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten()  # its weights have their own memory format
        first = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Tanh(), *conv, nn.Linear(16, 4))
        self.networks: dict[str, nn.Module] = {"first": first, "second": nn.Linear(4, 1)}
        self.stop_at: int | None = None

    def to(self, device: torch.device) -> None: ...

    def losses(self, batch: Numbers, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        if step == self.stop_at:
            self.stop_at = None  # a second signal would kill the process
            os.kill(os.getpid(), signal.SIGTERM)
        y = networks["first"](batch.x + 0.1 * random.normal(batch.x.shape[1:]))
        yield "first", (y - batch.x).square().mean(), {}
        yield "second", (networks["second"](y.detach()) - batch.x.sum(1, keepdim=True)).square().mean(), {}

    def sample(self) -> None:
        return None


def weights(task: TwoNetworks) -> list[torch.Tensor]:
    return [p.detach().clone() for network in task.networks.values() for p in network.parameters()]


def run(folder: Path, config: LoopConfig = CONFIG, stop_at: int | None = None, nan_at: int | None = None) -> list[torch.Tensor]:
    task = TwoNetworks()
    task.stop_at = stop_at
    train(task, NumberBatches(config.batch_size, nan_at), config, folder)
    return weights(task)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"optimizer": "adafactor", "lr_scheduler": "cosine"},
        {"optimizer": "prodigy", "learning_rate": 1.0},
    ],
    ids=str,
)
def test_an_interrupted_run_resumes_exactly(tmp_path, changes):
    config = replace(CONFIG, **changes)
    whole = run(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", config, stop_at=5)
    resumed = run(tmp_path / "parts", config)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert len(checkpoints(tmp_path / "parts" / "checkpoints")) == 2


def test_training_changes_all_weights_and_lowers_the_loss(tmp_path):
    before, after = weights(TwoNetworks()), run(tmp_path, replace(CONFIG, max_train_steps=200, lr_decay=0.0))
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    losses = [json.loads(line)["first"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2


def test_training_keeps_the_callers_random_state(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    task = TwoNetworks()
    torch.set_rng_state(before)
    train(task, NumberBatches(), CONFIG, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_accumulation_equals_the_whole_batch(tmp_path):
    """Without noise and dropout. The tolerance is a few roundings of weights around 1 in each of 12 steps."""
    results = [without_dropout(tmp_path / str(accumulate), accumulate) for accumulate in (1, 4)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


def without_dropout(folder: Path, accumulate: int) -> list[torch.Tensor]:
    task = TwoNetworks()
    first = task.networks["first"]
    assert isinstance(first, nn.Sequential)
    task.networks = {"first": nn.Sequential(first[0], *first[2:])}
    task.losses = lambda batch, networks, random, step: iter([("first", (networks["first"](batch.x) - batch.x).square().mean(), {})])
    train(task, NumberBatches(), replace(CONFIG, gradient_accumulation_steps=accumulate, ema_decay=0), folder)
    return weights(task)


def test_a_nan_loss_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(DaguerreError, match="nan at step 6"):
        run(tmp_path, nan_at=6)
    (kept,) = checkpoints(tmp_path / "checkpoints")
    assert json.loads((kept / "state.json").read_text())["step"] == 4


def test_a_diverging_loss_stops_the_run_and_keeps_the_checkpoints(tmp_path):
    task = TwoNetworks()
    task.networks = {"first": nn.Linear(4, 4)}

    def losses(batch: Numbers, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        yield "first", 1 + 0.5 * max(0, step - 30) + 0 * networks["first"](batch.x).mean(), {}  # 1 for 30 steps, then it rises

    task.losses = losses
    config = replace(CONFIG, max_train_steps=200, ema_decay=0)
    with pytest.raises(
        DaguerreError, match=r"loss, as a mean of 20, rose from 1 to 10\.25 at step 58\. The last checkpoints in .* are kept"
    ):
        train(task, NumberBatches(), config, tmp_path)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000052", "step-00000056"]


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path):
    whole = run(tmp_path)
    newest = checkpoints(tmp_path / "checkpoints")[-1] / "networks.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    assert all(torch.equal(a, b) for a, b in zip(whole, run(tmp_path), strict=True))


def test_most_settings_may_change_between_runs(tmp_path):
    run(tmp_path, replace(CONFIG, max_train_steps=4))
    changed = replace(
        CONFIG,
        max_train_steps=6,
        learning_rate=1.0,
        lr_warmup_steps=0,
        lr_decay=0.0,
        checkpoint_every=1,
        log_every=1,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
    )
    run(tmp_path, changed)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 16}, "batch_size 8, not 16"),
        ({"betas": (0.5, 0.9)}, r"betas \[0.9, 0.99\], not \[0.5, 0.9\]"),
        ({"seed": 1}, "seed 0, not 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, named):
    run(tmp_path, replace(CONFIG, max_train_steps=1))
    with pytest.raises(DaguerreError, match=f"step-00000001 belongs to a run with {named}\\. Use the same values"):
        run(tmp_path, replace(CONFIG, **changes))


def test_differing_recipe_values_are_named(tmp_path):
    config = replace(CONFIG, max_train_steps=1)
    train(TwoNetworks(), NumberBatches(), config, tmp_path, recipe={"model": {"channels": (8, 16), "blocks": 1}, "data": "shapes"})
    with pytest.raises(DaguerreError, match=r"with recipe\.model\.channels \[8, 16\], not \[8, 32\]\. Use"):
        train(TwoNetworks(), NumberBatches(), config, tmp_path, recipe={"model": {"channels": (8, 32), "blocks": 1}, "data": "shapes"})


def test_a_finished_run_can_be_repeated_but_not_shortened(tmp_path, capsys):
    whole = run(tmp_path, replace(CONFIG, max_train_steps=4))
    capsys.readouterr()
    assert all(torch.equal(a, b) for a, b in zip(whole, run(tmp_path, replace(CONFIG, max_train_steps=4)), strict=True))
    assert capsys.readouterr().err == "two: all 4 steps are already done\n"
    with pytest.raises(DaguerreError, match="already has 4 training steps, more than the 3 requested"):
        run(tmp_path, replace(CONFIG, max_train_steps=3))


def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path):
    """Steps after the last checkpoint run again, so their log entries are dropped."""
    config = replace(CONFIG, log_every=1, checkpoint_every=4)
    with pytest.raises(DaguerreError, match="nan at step 6"):
        run(tmp_path, config, nan_at=6)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "fir')
    run(tmp_path, config)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == list(range(1, 13))
    curve = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("two/first")
    assert [point.step for point in curve] == list(range(1, 13))


class HalfPrecision(Accelerator):
    """A loss scaler on the CPU, as for float16 on a GPU; its initial scale makes the first gradients infinite."""

    def __init__(self, **_settings: str):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, backoff_factor=2.0**-2, growth_interval=4)
        self.native_amp = True
        self.state._mixed_precision = "fp16"

    def autocast(self, *_args: object):
        return nullcontext()


def test_the_loss_scale_is_part_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("daguerre.training.loop.Accelerator", HalfPrecision)
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop_at=5)
    (newest,) = (json.loads((path / "state.json").read_text()) for path in checkpoints(tmp_path / "parts" / "checkpoints")[-1:])
    assert newest["scaler"]["scale"] < 2.0**24
    assert all(torch.equal(a, b) for a, b in zip(whole, run(tmp_path / "parts"), strict=True))


def test_each_task_of_a_recipe_has_its_own_precision(tmp_path):
    for precision in ("bf16", "no"):
        run(tmp_path / precision, replace(CONFIG, max_train_steps=1, mixed_precision=precision))


def test_float16_is_refused_without_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(DaguerreError, match="fp16 needs a GPU, but the device is cpu; use bf16 or no"):
            run(tmp_path, replace(CONFIG, mixed_precision="fp16"))


def test_moments_of_8_bits_are_refused_without_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(DaguerreError, match="adamw8bit needs a CUDA GPU, but the device is cpu; adafactor"):
            run(tmp_path, replace(CONFIG, optimizer="adamw8bit"))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, replace(CONFIG, max_train_steps=4))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daguerre.training.checkpoint.write_safetensors", full)
    with pytest.raises(DaguerreError, match="No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_disk_too_full_for_the_log_is_one_error(tmp_path):
    """A resource limit keeps any file from growing past the size of the log."""
    run(tmp_path, replace(CONFIG, max_train_steps=4))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 4, "filling": "x" * 200_000}) + "\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log.jsonl").stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(DaguerreError, match=r"Cannot write the log in .*: File too large\. The last checkpoint is kept"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run(tmp_path)


def test_an_error_from_tensorboard_is_one_error(tmp_path):
    (tmp_path / "tensorboard").write_text("a file, so that the directory cannot be created")
    with pytest.raises(DaguerreError, match=r"Cannot write the log in .*exists"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_train_steps": 0}, "max_train_steps is 0; it must be 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be 0 or more"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5; it must be between 0 and 1"),
        ({"batch_size": 9, "gradient_accumulation_steps": 2}, "batch_size 9 is not a multiple of gradient_accumulation_steps 2"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(DaguerreError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a launcher"),
        ({"optimizer": "adafactor"}, "does not work with --optimizer adafactor"),
        ({"compile": True}, "does not work with --compile"),
        ({"mixed_precision": "fp16"}, "does not work with --mixed-precision fp16"),
        ({"gradient_accumulation_steps": "auto"}, "does not work with --gradient-accumulation-steps auto"),
        ({"sharding": "none", "cpu_offload": True}, "add --sharding fsdp"),
    ],
    ids=str,
)
def test_impossible_sharding_is_refused(settings, message):
    with pytest.raises(DaguerreError, match=message):
        LoopConfig(**{"sharding": "fsdp", **settings})


def test_sharding_is_refused_for_small_networks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    config = replace(CONFIG, sharding="fsdp")
    monkeypatch.delenv("RANK")
    with pytest.raises(DaguerreError, match="--sharding fsdp is not for the training of a two"):
        train(TwoNetworks(), NumberBatches(), config, tmp_path)


def test_the_learning_rate_warms_up_stays_and_decays():
    config = LoopConfig(max_train_steps=100, lr_warmup_steps=10, lr_decay=0.2, learning_rate=1.0)
    assert [round(config.rate(s), 3) for s in (0, 4, 9, 50, 80, 90, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.05]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_schedules_are_those_of_diffusers(name):
    config = LoopConfig(max_train_steps=40, lr_warmup_steps=10, lr_scheduler=name, learning_rate=1.0)
    scheduler = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        num_warmup_steps=10,
        num_training_steps=40,
    )
    theirs = []
    for _ in range(40):
        theirs.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    # Their first rate is 0; ours is one step ahead in the warm-up, so that no step is wasted.
    expected = [*theirs[1:11], *theirs[10:]]
    assert [config.rate(step) for step in range(40)] == pytest.approx(expected, abs=1e-12)


def with_infinite_gradients(steps: range) -> TwoNetworks:
    """A task with an infinite gradient in these steps, from the slope of the square root at 0, and a finite loss."""
    task = TwoNetworks()
    first = task.networks["first"]
    task.networks = {"first": first}

    def losses(batch: Numbers, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        y = networks["first"](batch.x)
        yield "first", (y * 0).sum().sqrt() if step in steps else y.square().mean(), {}

    task.losses = losses
    return task


def test_a_step_with_a_bad_gradient_is_skipped_and_logged(tmp_path, capsys):
    before, after = with_infinite_gradients(range(0)), with_infinite_gradients(range(6, 7))
    train(before, NumberBatches(), replace(CONFIG, max_train_steps=6, ema_decay=0, lr_decay=0), tmp_path / "before")
    train(after, NumberBatches(), replace(CONFIG, max_train_steps=7, ema_decay=0, lr_decay=0), tmp_path / "after")
    assert all(torch.equal(a, b) for a, b in zip(weights(before), weights(after), strict=True))
    assert "two: skipped step 6 of 'first', whose gradient is not finite" in capsys.readouterr().err


def test_repeated_bad_gradients_stop_the_run(tmp_path):
    task = with_infinite_gradients(range(6, 12))
    with pytest.raises(DaguerreError, match=r"gradient of 'first' became infinite or NaN, 6 times in a row, at step 11"):
        train(task, NumberBatches(), CONFIG, tmp_path)
    assert all(bool(p.isfinite().all()) for p in task.networks["first"].parameters())
    kept = [json.loads((path / "state.json").read_text())["step"] for path in checkpoints(tmp_path / "checkpoints")]
    assert max(kept) == 8


class Wrapper(nn.Module):
    """A user-defined module: `compile` has no effect on PyTorch's own modules."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_steps_are_compiled_and_samples_are_not(tmp_path, monkeypatch):
    """Samples have other shapes and modes, for which compiling would take longer than the sample."""
    compiled, shapes, plain = [], [], nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda network: plain(network, backend=backend))
    task = TwoNetworks()
    task.networks = {name: Wrapper(network) for name, network in task.networks.items()}
    task.sample = lambda: shapes.append(task.networks["first"](torch.zeros(3, 4)).shape)
    train(task, NumberBatches(), replace(CONFIG, compile=True, sample_every=4), tmp_path)
    assert shapes == [(3, 4)] * 3
    assert len(compiled) == 2  # the two networks, once each


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_is_bfloat16_if_the_processor_supports_it(tmp_path, monkeypatch, capsys, native):
    monkeypatch.setattr("daguerre.training.loop.torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("daguerre.training.loop.has_native_bfloat16", lambda: native)
    found = {name: run(tmp_path / name, replace(CONFIG, mixed_precision=name)) for name in ("auto", "no")}
    assert "no bfloat16 instructions" not in capsys.readouterr().err
    found["bf16"] = run(tmp_path / "bf16", replace(CONFIG, mixed_precision="bf16"))
    assert ("no bfloat16 instructions" in capsys.readouterr().err) is not native
    same, other = ("bf16", "no") if native else ("no", "bf16")
    assert all(torch.equal(a, b) for a, b in zip(found["auto"], found[same], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found["auto"], found[other], strict=True))


class Constants:
    """Losses with known values: step + 1, and in evaluation mode the mean of the batch; the gradient is 3."""

    name, ema_networks = "constants", ()

    def __init__(self) -> None:
        self.networks: dict[str, nn.Module] = {"one": nn.Linear(1, 1, bias=False)}

    def to(self, device: torch.device) -> None: ...

    def losses(self, batch: Numbers, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        (weight,) = networks["one"].parameters()
        network = self.networks["one"]
        value = torch.tensor(float(step + 1)) if network.training else batch.x.mean()
        yield "one", value + 3 * (weight - weight.detach()).sum(), {"noise": random.uniform().mean()}

    def sample(self) -> None:
        return None


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_has_means_rates_and_gradient_norms(tmp_path):
    config = replace(CONFIG, ema_decay=0, max_train_steps=6)
    train(Constants(), NumberBatches(), config, tmp_path)
    first, second = log_of(tmp_path)
    assert (first["one"], second["one"]) == (2.5, 5.5)  # of steps 1 to 4 and 5 to 6
    assert first["gradient norm"] == second["gradient norm"] == 3
    assert first["learning rate"] == pytest.approx(config.rate(3), rel=1e-5)
    curve = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.value for point in curve.Scalars("constants/one")] == [2.5, 5.5]
    assert {"constants/learning rate", "constants/gradient norm"} <= {*curve.Tags()["scalars"]}


def test_the_log_has_the_loss_of_validation_batches(tmp_path):
    batches = [Numbers(torch.full((2, 4), 1.0)), Numbers(torch.full((1, 4), 4.0))]
    task = Constants()
    train(task, NumberBatches(), replace(CONFIG, ema_decay=0, max_train_steps=5, validation_every=2), tmp_path, validation=batches)
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert {line["validation one"] for line in lines} == {2.0}  # weighted by the batch sizes
    assert len({line["validation noise"] for line in lines}) == 1  # the same noise each time
    assert lines[0]["one"] == 1.5


def test_validation_changes_no_weights(tmp_path):
    plain = run(tmp_path / "plain")
    task = TwoNetworks()
    validation = [next(NumberBatches().stream(99))]
    train(task, NumberBatches(), replace(CONFIG, validation_every=3), tmp_path / "validated", validation=validation)
    assert all(torch.equal(a, b) for a, b in zip(plain, weights(task), strict=True))
    assert "validation first" in log_of(tmp_path / "validated")[-1]


def test_seconds_continue_and_no_step_is_missing_from_the_means(tmp_path):
    config = replace(CONFIG, ema_decay=0)
    with pytest.raises(Interrupted):
        run(tmp_path, config, stop_at=5)
    *_, stopped = log_of(tmp_path)
    assert stopped["step"] == 6
    (tmp_path / "log.jsonl").write_text(json.dumps(stopped | {"seconds": 1000.0}) + "\n")
    run(tmp_path, config)
    assert [line["step"] for line in log_of(tmp_path)] == [6, 8, 12]
    assert [line["seconds"] for line in log_of(tmp_path)] == sorted(line["seconds"] for line in log_of(tmp_path))
    assert 1000 < log_of(tmp_path)[-1]["seconds"] < 1200


def test_a_skipped_checkpoint_is_named(tmp_path, capsys):
    run(tmp_path, replace(CONFIG, max_train_steps=4))
    (damaged,) = checkpoints(tmp_path / "checkpoints")
    (damaged / "state.json").write_text("{")
    run(tmp_path, replace(CONFIG, max_train_steps=4))
    assert capsys.readouterr().err.count(f"skipped the checkpoint {damaged}, which is damaged or incomplete") == 1
