"""Data-parallel training with torchrun: two processes act like one, share the encoding of images, and stop after the same step."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from daguerre.data import BatchLoader, ShapesDataset
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.training.batch_random import BatchRandom
from daguerre.training.checkpoint import checkpoints
from daguerre.training.datasets import encoded
from daguerre.training.datasets.latents import CachedCaptions, CachedLatents, cache_latents
from daguerre.training.distributed.processes import main_process_first, rank, state, world
from daguerre.training.loop import train
from tests.training.launch import ENVIRONMENT, TORCHRUN, needs_two_cores, run_program
from tests.training.test_loop import CONFIG, NumberBatches, Numbers, TwoNetworks


def cached(out: Path) -> tuple[torch.Tensor, list[str]]:
    torch.manual_seed(0)
    config = AutoencoderKLConfig(latent_channels=4, channels=(8, 16), blocks=1, mid_attention=False, norm_groups=4)
    with patch.object(encoded, "FILE_SAMPLES", 8):
        latents, captions = cache_latents(BatchLoader(ShapesDataset(16), 4, seed=0), AutoencoderKL(config), 16, out / "cache", "key")
    return latents.joined(), captions


def deterministic_task() -> TwoNetworks:
    """Without dropout and noise, so that the parts of a batch have the same losses in one or two processes."""
    task = TwoNetworks()
    first = task.networks["first"]
    assert isinstance(first, nn.Sequential)
    task.networks["first"] = nn.Sequential(first[0], *first[2:])

    def losses(batch: Numbers, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        y = networks["first"](batch.x)
        yield "first", (y - batch.x).square().mean(), {}
        yield "second", (networks["second"](y.detach()) - batch.x.sum(1, keepdim=True)).square().mean(), {}

    task.losses = losses
    return task


class NoisyTask(TwoNetworks):
    """Noise and weights of the samples, as in a diffusion loss with min-SNR: the run depends on which sample has which noise."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = deterministic_task().networks

    def losses(self, batch: Numbers, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        noise, weight = random.normal(batch.x.shape[1:]), random.uniform()
        y = networks["first"](batch.x + noise)
        yield "first", (weight * (y - batch.x).square().mean(1)).mean(), {}
        yield "second", (networks["second"](y.detach()) - noise.sum(1, keepdim=True)).square().mean(), {}


def noisy_weights(out: Path, parts_each: int = 1) -> list[list[float]]:
    """The weights after a run with noise, in which each process computes so many parts of a batch."""
    task = NoisyTask()
    train(task, NumberBatches(), replace(CONFIG, gradient_accumulation_steps=parts_each), out)
    return weights_of(task)


def weights_of(task: TwoNetworks) -> list[list[float]]:
    return [value.flatten().tolist() for network in task.networks.values() for value in network.parameters()]


def killed_once(out: Path) -> None:
    """A run whose second process is killed between two checkpoints, unless it started again after that."""
    task, losses, started_again = NoisyTask(), NoisyTask.losses, os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"

    def losses_until_killed(batch: Numbers, networks: Mapping[str, nn.Module], random: BatchRandom, step: int):
        if step == 6 and rank() == 1 and not started_again:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(task, batch, networks, random, step)

    task.losses = losses_until_killed
    train(task, NumberBatches(), CONFIG, out)
    (out / f"report-{rank()}.json").write_text(json.dumps({"noisy": weights_of(task), "started again": started_again}))
    state().destroy_process_group()


def everything(out: Path) -> None:
    """What each process runs: encoding, training, a refused batch size, and a run in which only the second process receives SIGTERM."""
    marks = main_process_first(lambda: [*sorted(path.name for path in out.glob("mark-*")), (out / f"mark-{rank()}").touch()][:-1])
    latents, captions = cached(out)
    task = deterministic_task()
    train(task, NumberBatches(), CONFIG, out / "train")
    weights = weights_of(task)
    report = {
        "world": world(),
        "latents": len(latents),
        "captions": captions,
        "marks": marks,
        "weights": weights,
        "noisy": noisy_weights(out / "noisy"),
    }
    (out / f"report-{rank()}.json").write_text(json.dumps(report))
    with pytest.raises(DaguerreError, match="batch_size 3 is not a multiple of gradient_accumulation_steps 1 times 2 processes"):
        train(deterministic_task(), NumberBatches(), replace(CONFIG, batch_size=3), out / "odd")
    interrupted = TwoNetworks()
    interrupted.stop_at = 5 if rank() == 1 else None
    try:
        train(interrupted, NumberBatches(), CONFIG, out / "stopped")
    finally:
        state().destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `everything` wrote under torchrun."""
    out = tmp_path_factory.mktemp("two")
    program = (
        "from daguerre.training.loop import Interrupted\nfrom tests.training.test_processes import everything\n"
        "try:\n    everything(Path())\nexcept Interrupted as error:\n    print(error, flush=True)\n"
    )
    done = run_program(out, program, TORCHRUN)
    assert done.returncode == 0, done.stderr
    (out / "stdout.txt").write_text(done.stdout)
    return out


def reports(folder: Path) -> list[dict]:
    return [json.loads((folder / f"report-{r}.json").read_text()) for r in (0, 1)]


@needs_two_cores
def test_two_processes_share_the_encoding_and_agree_with_one(two: Path, tmp_path: Path):
    latents, captions = cached(tmp_path)
    for report in reports(two):
        assert (report["world"], report["latents"], report["captions"]) == (2, 16, captions)
    mine, theirs = (sorted((out / "cache" / "key-16-8").iterdir()) for out in (tmp_path, two))
    assert [path.name for path in mine] == [path.name for path in theirs] == ["000000.safetensors", "000001.safetensors"]
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(load_file(one)["samples"], load_file(other)["samples"])
    assert len(latents) == 16


@needs_two_cores
def test_the_main_process_runs_first(two: Path):
    assert [report["marks"] for report in reports(two)] == [[], ["mark-0"]]


@needs_two_cores
def test_two_processes_train_like_one(two: Path, tmp_path: Path):
    """The same global batch gives the same gradient up to the order of sums, so weights around 1 differ by a few roundings per step."""
    task = deterministic_task()
    train(task, NumberBatches(), CONFIG, tmp_path)
    alone = weights_of(task)
    first, second = (report["weights"] for report in reports(two))
    assert first == second
    bound = CONFIG.max_train_steps * 8 * torch.finfo(torch.float32).eps
    assert all(a == pytest.approx(b, abs=bound) for a, b in zip(alone, first, strict=True))
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (tmp_path, two / "train")]
    assert [line["first"] for line in logs[1]] == pytest.approx([line["first"] for line in logs[0]], abs=bound)


@needs_two_cores
def test_each_sample_has_the_same_noise_in_one_process_as_in_two(two: Path, tmp_path: Path):
    """One process with one or four parts a batch, two with one each: equal up to the order of sums. Other noise would change more."""
    bound = CONFIG.max_train_steps * 32 * torch.finfo(torch.float32).eps
    for parts in (1, 4):
        alone = noisy_weights(tmp_path / str(parts), parts)
        for report in reports(two):
            assert all(a == pytest.approx(b, abs=bound) for a, b in zip(alone, report["noisy"], strict=True))


@needs_two_cores
@pytest.mark.long
def test_torchrun_continues_after_a_process_was_killed(two: Path, tmp_path: Path):
    program = "from tests.training.test_processes import killed_once\nkilled_once(Path('out'))\n"
    done = run_program(tmp_path, program, [*TORCHRUN, "--max-restarts=1"])
    assert done.returncode == 0, done.stderr
    assert "resuming after step 4" in done.stdout + done.stderr
    for killed, whole in zip(reports(tmp_path / "out"), reports(two), strict=True):
        assert killed["started again"]
        assert killed["noisy"] == whole["noisy"]


@needs_two_cores
@pytest.mark.long
def test_four_processes_train_like_one(tmp_path: Path):
    """Four processes on few cores are slow, but compute what one does."""
    program = "import json\nfrom tests.training.test_processes import noisy_weights, rank, state\n"
    program += (
        "Path(f'report-{rank()}.json').write_text(json.dumps({'noisy': noisy_weights(Path('out'))}))\nstate().destroy_process_group()\n"
    )
    done = run_program(tmp_path, program, [*TORCHRUN[:-1], "--nproc-per-node=4"])
    assert done.returncode == 0, done.stderr
    alone, bound = noisy_weights(tmp_path / "alone"), CONFIG.max_train_steps * 32 * torch.finfo(torch.float32).eps
    assert all(a == pytest.approx(b, abs=bound) for a, b in zip(alone, reports(tmp_path)[0]["noisy"], strict=True))


@needs_two_cores
def test_a_signal_to_one_process_stops_both_after_the_same_step(two: Path):
    assert (two / "stdout.txt").read_text().count("Stopped after step 6 of 12") == 2
    assert checkpoints(two / "stopped" / "checkpoints")[-1].name == "step-00000006"


def test_cached_latents_are_read_back(tmp_path, monkeypatch):
    first, captions = cached(tmp_path)
    monkeypatch.setattr(AutoencoderKL, "encode", None)
    again, same = cached(tmp_path)
    assert torch.equal(first, again)
    assert captions == same


def test_every_epoch_visits_each_latent_once_in_another_order():
    batches = CachedLatents(torch.arange(10.0).reshape(10, 1, 1, 1), [str(i) for i in range(10)], batch_size=5, seed=0)
    epochs = [[c for step in (2 * e, 2 * e + 1) for c in batches.batch(step).captions] for e in range(3)]
    assert all(sorted(epoch, key=int) == [str(i) for i in range(10)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    stream = batches.stream(3)
    assert next(stream).captions == batches.batch(3).captions
    assert [float(x) for x in batches.batch(4).x.flatten()] == [float(c) for c in batches.batch(4).captions]


def test_each_caption_is_encoded_once():
    calls: list[str] = []

    def encode(captions: list[str]) -> Conditioning:
        calls.extend(captions)
        return Conditioning(context=torch.tensor([[[float(len(c))]] for c in captions]))

    cached_captions = CachedCaptions(encode)
    for _ in range(2):
        context = cached_captions(["a", "bcd", "a"]).context
        assert context is not None
        assert context.flatten().tolist() == [1, 3, 1]
    assert calls == ["a", "bcd"]


@pytest.fixture
def command(tmp_path: Path):
    """Starts `daguerre train …`, alone or under torchrun, and kills it at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(launcher: list[str], *arguments: str) -> subprocess.Popen[str]:
        line = [*launcher, "-m", "daguerre", "train", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(line, cwd=tmp_path, env=ENVIRONMENT, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("launcher", "number"),
    [([sys.executable], signal.SIGINT), pytest.param(TORCHRUN, signal.SIGTERM, marks=needs_two_cores)],
    ids=["one process, SIGINT", "torchrun, SIGTERM"],
)
def test_a_signal_stops_a_command_after_one_step_with_a_checkpoint(command, tmp_path, launcher, number):
    process = command(
        launcher, "autoencoder", "--data", "shapes", "--resolution", "16", "--base-channels", "4", "--f", "2", "--log-every", "1"
    )
    assert any(line.startswith("autoencoder 1/") for line in iter(process.stderr.readline, ""))
    children = children_of(process)
    process.send_signal(number)
    rest = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    assert re.search(r"^daguerre: Stopped after step (\d+) of \d+; run the same command again to resume\.$", rest, re.MULTILINE)
    assert checkpoints(tmp_path / "runs" / "autoencoder" / "checkpoints")
    wait_until(lambda: not [child for child in children if Path(f"/proc/{child}").exists()])


def children_of(process: subprocess.Popen) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
