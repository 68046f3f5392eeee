"""The loop: a stopped run ends in the bits of an unstopped one, several processes act as one, a NaN leaves the last good state."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from daguerre.errors import DaguerreError
from daguerre.training.checkpoint import checkpoints
from daguerre.training.loop import Interrupted, LoopConfig, train
from daguerre.training.processes import launch, rank

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
    """Random vectors, a pure function of the step."""

    def __init__(self, size: int = 8, broken_at: int | None = None):
        self.size, self.broken_at = size, broken_at

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Numbers]:
        while True:
            x = torch.randn(self.size, 4, generator=torch.Generator().manual_seed(start))
            yield Numbers(x * float("nan") if start == self.broken_at else x)
            start += 1


class TwoNetworks:
    """A generator-like network with dropout and noise, then a critic of its detached output: every kind of randomness and order."""

    name = "two"
    averaged = ("first",)

    def __init__(self) -> None:
        torch.manual_seed(0)
        seen = nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten()  # whose weights have an order of their own
        first = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Tanh(), *seen, nn.Linear(16, 4))
        self.networks: dict[str, nn.Module] = {"first": first, "second": nn.Linear(4, 1)}
        self.stop_at: int | None = None

    def to(self, device: torch.device) -> None: ...

    def losses(self, batch: Numbers, draw: torch.Generator, step: int):
        if step == self.stop_at:
            self.stop_at = None  # a second signal would end the process
            os.kill(os.getpid(), signal.SIGTERM)
        y = self.networks["first"](batch.x + 0.1 * torch.randn(batch.x.shape, generator=draw))
        yield "first", (y - batch.x).square().mean(), {}
        yield "second", (self.networks["second"](y.detach()) - batch.x.sum(1, keepdim=True)).square().mean(), {}

    def sample(self) -> None:
        return None


def weights(stage: TwoNetworks) -> list[torch.Tensor]:
    return [p.detach().clone() for network in stage.networks.values() for p in network.parameters()]


def run(folder: Path, config: LoopConfig = CONFIG, stop_at: int | None = None, broken_at: int | None = None) -> list[torch.Tensor]:
    stage = TwoNetworks()
    stage.stop_at = stop_at
    train(stage, NumberBatches(config.batch_size, broken_at), config, folder)
    return weights(stage)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stopped_and_resumed_ends_in_the_same_bits(tmp_path, accumulate):
    config = replace(CONFIG, gradient_accumulation_steps=accumulate)
    whole = run(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", config, stop_at=5)
    resumed = run(tmp_path / "parts", config)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert len(checkpoints(tmp_path / "parts" / "checkpoints")) == 2


def test_training_moves_the_weights_and_the_loss(tmp_path):
    before, after = weights(TwoNetworks()), run(tmp_path, replace(CONFIG, max_train_steps=200, lr_decay=0.0))
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    losses = [json.loads(line)["first"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2


def test_accumulated_parts_give_the_gradient_of_the_whole(tmp_path):
    """Without noise and dropout, parts of a batch are the batch."""
    results = [without_dropout(tmp_path / str(accumulate), accumulate) for accumulate in (1, 4)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


def without_dropout(folder: Path, accumulate: int) -> list[torch.Tensor]:
    stage = TwoNetworks()
    first = stage.networks["first"]
    assert isinstance(first, nn.Sequential)
    stage.networks = {"first": nn.Sequential(first[0], *first[2:])}
    stage.losses = lambda batch, draw, step: iter([("first", (stage.networks["first"](batch.x) - batch.x).square().mean(), {})])
    train(stage, NumberBatches(), replace(CONFIG, gradient_accumulation_steps=accumulate, ema_decay=0), folder)
    return weights(stage)


def test_nan_stops_with_the_last_good_checkpoint(tmp_path):
    with pytest.raises(DaguerreError, match="nan at step 6"):
        run(tmp_path, broken_at=6)
    (kept,) = checkpoints(tmp_path / "checkpoints")
    assert json.loads((kept / "state.json").read_text())["step"] == 4


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole = run(tmp_path)
    newest = checkpoints(tmp_path / "checkpoints")[-1] / "networks.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    assert all(torch.equal(a, b) for a, b in zip(whole, run(tmp_path), strict=True))


def test_what_does_not_change_the_meaning_of_a_checkpoint_may_change(tmp_path):
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
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path, changes, named):
    run(tmp_path, replace(CONFIG, max_train_steps=1))
    with pytest.raises(DaguerreError, match=f"step-00000001 belongs to a run with {named}\\. Give the same values"):
        run(tmp_path, replace(CONFIG, **changes))


def test_the_recipe_s_own_values_are_named_too(tmp_path):
    config = replace(CONFIG, max_train_steps=1)
    train(TwoNetworks(), NumberBatches(), config, tmp_path, recipe={"model": {"channels": (8, 16), "blocks": 1}, "data": "shapes"})
    with pytest.raises(DaguerreError, match=r"with recipe\.model\.channels \[8, 16\], not \[8, 32\]\. Give"):
        train(TwoNetworks(), NumberBatches(), config, tmp_path, recipe={"model": {"channels": (8, 32), "blocks": 1}, "data": "shapes"})


def test_a_finished_run_says_so_and_cannot_become_shorter(tmp_path, capsys):
    whole = run(tmp_path, replace(CONFIG, max_train_steps=4))
    capsys.readouterr()
    assert all(torch.equal(a, b) for a, b in zip(whole, run(tmp_path, replace(CONFIG, max_train_steps=4)), strict=True))
    assert capsys.readouterr().err == "two: all 4 steps were done before\n"
    with pytest.raises(DaguerreError, match="trained for 4 steps already, more than the 3 asked for"):
        run(tmp_path, replace(CONFIG, max_train_steps=3))


def test_the_log_of_a_resumed_run_tells_every_step_once(tmp_path):
    """Steps that were logged after the last checkpoint are trained again, so what was said of them is forgotten."""
    config = replace(CONFIG, log_every=1, checkpoint_every=4)
    with pytest.raises(DaguerreError, match="nan at step 6"):
        run(tmp_path, config, broken_at=6)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "fir')
    run(tmp_path, config)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == list(range(1, 13))
    curve = EventAccumulator(str(tmp_path / "curves")).Reload().Scalars("two/first")
    assert [point.step for point in curve] == list(range(1, 13))


class HalfPrecision(Accelerator):
    """Half precision on the CPU, its loss scaled as on a GPU, from so high that the first gradients are infinite and left out."""

    def __init__(self, **_settings: str):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, backoff_factor=2.0**-2, growth_interval=4)
        self.native_amp = True
        self.state._mixed_precision = "fp16"

    def autocast(self, *_args: object):
        return nullcontext()


def test_half_precision_s_scale_is_part_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("daguerre.training.loop.Accelerator", HalfPrecision)
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop_at=5)
    (newest,) = (json.loads((path / "state.json").read_text()) for path in checkpoints(tmp_path / "parts" / "checkpoints")[-1:])
    assert newest["scaler"]["scale"] < 2.0**24
    assert all(torch.equal(a, b) for a, b in zip(whole, run(tmp_path / "parts"), strict=True))


def test_each_stage_of_a_recipe_has_its_own_precision(tmp_path):
    for precision in ("bf16", "no"):
        run(tmp_path / precision, replace(CONFIG, max_train_steps=1, mixed_precision=precision))


def test_half_precision_is_for_gpus(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(DaguerreError, match="fp16 needs a GPU, and this is the cpu; use bf16 or no"):
            run(tmp_path, replace(CONFIG, mixed_precision="fp16"))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, replace(CONFIG, max_train_steps=4))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daguerre.training.checkpoint.write_safetensors", full)
    with pytest.raises(DaguerreError, match="No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_disk_too_full_for_the_log_is_one_sentence(tmp_path):
    """The system itself refuses to let any file grow past the log's size."""
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


def test_a_disk_too_full_for_the_curves_is_one_sentence(tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daguerre.training.curves.RecordWriter.write", full)
    with pytest.raises(DaguerreError, match=r"Cannot write the log in .*: No space left on device"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be 0 or more"),
        ({"ema": 1.5}, "ema is 1.5; it must lie between 0 and 1"),
        ({"batch_size": 9, "accumulate": 2}, "batch_size 9 is not a multiple of accumulate 2"),
    ],
)
def test_impossible_settings(changes, said):
    with pytest.raises(DaguerreError, match=said):
        replace(CONFIG, **changes)


def test_the_rate_rises_stays_and_falls():
    config = LoopConfig(max_train_steps=100, lr_warmup_steps=10, lr_decay=0.2, learning_rate=1.0)
    assert [round(config.rate(s), 3) for s in (0, 4, 9, 50, 80, 90, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.05]


def one_or_two(out: Path) -> list[list[float]]:
    """A run without dropout and noise, so that parts of a batch are the batch."""
    stage = TwoNetworks()
    first = stage.networks["first"]
    assert isinstance(first, nn.Sequential)
    stage.networks["first"] = nn.Sequential(first[0], *first[2:])

    def losses(batch: Numbers, draw: torch.Generator, step: int):
        y = stage.networks["first"](batch.x)
        yield "first", (y - batch.x).square().mean(), {}
        yield "second", (stage.networks["second"](y.detach()) - batch.x.sum(1, keepdim=True)).square().mean(), {}

    stage.losses = losses
    train(stage, NumberBatches(), CONFIG, out)
    return [value.flatten().tolist() for value in weights(stage)]


def told_to_stop(out: Path) -> None:
    """A run of which only the second process is asked to stop."""
    run(out, stop_at=5 if rank() == 1 else None)


def test_two_processes_train_as_one_and_stop_as_one(tmp_path):
    """The same global batch in two processes gives the same gradient, so the same weights but for the order of sums."""
    one = one_or_two(tmp_path / "one")
    both = launch(2, one_or_two, tmp_path / "both")
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(one, both, strict=True))
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "both")]
    assert [line["first"] for line in logs[1]] == pytest.approx([line["first"] for line in logs[0]], abs=1e-5)
    with pytest.raises(Interrupted, match="after step 6 of 12"):
        launch(2, told_to_stop, tmp_path / "stopped")
    (kept,) = (path.name for path in checkpoints(tmp_path / "stopped" / "checkpoints")[-1:])
    assert kept == "step-00000006"


def with_infinite_gradients(steps: range) -> TwoNetworks:
    """A stage whose gradient is infinite in these steps, by the square root's slope at 0, though its loss is fine."""
    stage = TwoNetworks()
    first = stage.networks["first"]
    stage.networks = {"first": first}

    def losses(batch: Numbers, draw: torch.Generator, step: int):
        y = first(batch.x)
        yield "first", (y * 0).sum().sqrt() if step in steps else y.square().mean(), {}

    stage.losses = losses
    return stage


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_told(tmp_path, capsys):
    before, after = with_infinite_gradients(range(0)), with_infinite_gradients(range(6, 7))
    train(before, NumberBatches(), replace(CONFIG, max_train_steps=6, ema_decay=0, lr_decay=0), tmp_path / "before")
    train(after, NumberBatches(), replace(CONFIG, max_train_steps=7, ema_decay=0, lr_decay=0), tmp_path / "after")
    assert all(torch.equal(a, b) for a, b in zip(weights(before), weights(after), strict=True))
    assert "two: the gradient of 'first' is not finite at step 6, which is left out" in capsys.readouterr().err


def test_gradients_that_are_not_finite_again_and_again_leave_the_last_good_checkpoint(tmp_path):
    stage = with_infinite_gradients(range(6, 12))
    with pytest.raises(DaguerreError, match=r"gradient of 'first' became infinite or NaN, 6 times in a row, at step 11"):
        train(stage, NumberBatches(), CONFIG, tmp_path)
    assert all(bool(p.isfinite().all()) for p in stage.networks["first"].parameters())
    kept = [json.loads((path / "state.json").read_text())["step"] for path in checkpoints(tmp_path / "checkpoints")]
    assert max(kept) == 8


class Own(nn.Module):
    """A module of another class than PyTorch's own, whose `compile` does nothing where they stand alone."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_steps_are_compiled_and_samples_are_not(tmp_path, monkeypatch):
    """A sample's shapes and mode are others, for which compiling would take longer than the sample."""
    compiled, seen, plain = [], [], nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda network: plain(network, backend=backend))
    stage = TwoNetworks()
    stage.networks = {name: Own(network) for name, network in stage.networks.items()}
    stage.sample = lambda: seen.append(stage.networks["first"](torch.zeros(3, 4)).shape)
    train(stage, NumberBatches(), replace(CONFIG, compile=True, sample_every=4), tmp_path)
    assert seen == [(3, 4)] * 3
    assert len(compiled) == 2  # the two networks, once each


@pytest.mark.parametrize("has", [True, False])
def test_the_precision_called_auto_is_bfloat16_where_there_are_instructions_for_it(tmp_path, monkeypatch, capsys, has):
    monkeypatch.setattr("daguerre.training.loop.torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("daguerre.training.loop.multiplies_bfloat16", lambda: has)
    found = {name: run(tmp_path / name, replace(CONFIG, mixed_precision=name)) for name in ("auto", "no")}
    assert "no instructions for bf16" not in capsys.readouterr().err
    found["bf16"] = run(tmp_path / "bf16", replace(CONFIG, mixed_precision="bf16"))
    assert ("no instructions for bf16" in capsys.readouterr().err) is not has
    same, other = ("bf16", "no") if has else ("no", "bf16")
    assert all(torch.equal(a, b) for a, b in zip(found["auto"], found[same], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found["auto"], found[other], strict=True))
