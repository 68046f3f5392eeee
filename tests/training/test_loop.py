"""The loop: a stopped run ends in the bits of an unstopped one, several processes act as one, a NaN leaves the last good state."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from daguerre.errors import DaguerreError
from daguerre.training.checkpoint import checkpoints
from daguerre.training.loop import LoopConfig, Stopped, train

CONFIG = LoopConfig(steps=12, batch_size=8, learning_rate=1e-2, warmup=3, log_every=4, sample_every=0, checkpoint_every=4, ema=0.9)


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
        first = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 4))
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
    config = replace(CONFIG, accumulate=accumulate)
    whole = run(tmp_path / "whole", config)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", config, stop_at=5)
    resumed = run(tmp_path / "parts", config)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert len(checkpoints(tmp_path / "parts" / "checkpoints")) == 2


def test_training_moves_the_weights_and_the_loss(tmp_path):
    before, after = weights(TwoNetworks()), run(tmp_path, replace(CONFIG, steps=200, decay=0.0))
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    losses = [json.loads(line)["first"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2


def test_accumulated_parts_give_the_gradient_of_the_whole(tmp_path):
    """Without noise and dropout, parts of a batch are the batch."""
    results = [without_dropout(tmp_path / str(accumulate), accumulate) for accumulate in (1, 4)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def without_dropout(folder: Path, accumulate: int) -> list[torch.Tensor]:
    stage = TwoNetworks()
    first = stage.networks["first"]
    assert isinstance(first, nn.Sequential)
    stage.networks = {"first": nn.Sequential(first[0], first[2], first[3])}
    stage.losses = lambda batch, draw, step: iter([("first", (stage.networks["first"](batch.x) - batch.x).square().mean(), {})])
    train(stage, NumberBatches(), replace(CONFIG, accumulate=accumulate, ema=0), folder)
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


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(DaguerreError, match="another recipe"):
        run(tmp_path, replace(CONFIG, learning_rate=1.0))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, replace(CONFIG, steps=4))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daguerre.training.checkpoint.put_safetensors", full)
    with pytest.raises(DaguerreError, match="No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_the_rate_rises_stays_and_falls():
    config = LoopConfig(steps=100, warmup=10, decay=0.2, learning_rate=1.0)
    assert [round(config.rate(s), 3) for s in (0, 4, 9, 50, 80, 90, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.05]


def test_two_processes_train_as_one(tmp_path):
    """The same global batch in two processes gives the same gradient, so the same weights but for the order of sums."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\nimport torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_loop import CONFIG, NumberBatches, TwoNetworks, train, weights\n"
        "stage = TwoNetworks()\n"
        "first, second = stage.networks['first'], stage.networks['second']\n"
        "stage.networks['first'] = torch.nn.Sequential(first[0], first[2], first[3])\n"
        "def losses(batch, draw, step):\n"
        "    y = stage.networks['first'](batch.x)\n"
        "    yield 'first', (y - batch.x).square().mean(), {}\n"
        "    yield 'second', (stage.networks['second'](y.detach()) - batch.x.sum(1, keepdim=True)).square().mean(), {}\n"
        "stage.losses = losses\n"
        "out = Path(sys.argv[1])\n"
        "train(stage, NumberBatches(), CONFIG, out)\n"
        "torch.save(weights(stage), out / 'weights.pt')\n"
    )
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path / "one"], env=environment, check=True, capture_output=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, script, tmp_path / "both"], env=environment, check=True, capture_output=True)
    one, both = (torch.load(tmp_path / name / "weights.pt") for name in ("one", "both"))
    assert max((a - b).abs().max().item() for a, b in zip(one, both, strict=True)) < 1e-5


def test_a_gradient_that_is_not_finite_leaves_the_weights_whole(tmp_path):
    """The square root's slope at 0 is infinite though its value is fine: the step is refused and the last good checkpoint stays."""
    stage = TwoNetworks()
    first = stage.networks["first"]
    stage.networks = {"first": first}

    def losses(batch: Numbers, draw: torch.Generator, step: int):
        y = first(batch.x)
        yield "first", (y * 0).sum().sqrt() if step == 6 else y.square().mean(), {}

    stage.losses = losses
    with pytest.raises(DaguerreError, match=r"gradient of 'first'.*at step 6"):
        train(stage, NumberBatches(), CONFIG, tmp_path)
    assert all(bool(p.isfinite().all()) for p in first.parameters())
    (kept,) = checkpoints(tmp_path / "checkpoints")
    assert json.loads((kept / "state.json").read_text())["step"] == 4
