"""Processes that train together know each other from the start, share the encoding of pictures, and see the same samples as one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from daguerre.cli.main import main
from daguerre.data import BatchLoader, ShapesDataset
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.training.checkpoint import checkpoints
from daguerre.training.datasets.latents import CachedCaptions, CachedLatents, cache_latents

PROGRAM = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.training.test_processes import cached
from daguerre.training.processes import main_first, rank, world
out = Path(sys.argv[1])
seen = main_first(lambda: [*sorted(path.name for path in out.glob("mark-*")), (out / f"mark-{{rank()}}").touch()][:-1])
latents, captions = cached(out)
line = "|".join(map(str, (rank(), world(), len(latents), *captions[:2], *seen)))
sys.stdout.write(line + chr(10))  # in one piece, for both processes write at once
"""


def cached(out: Path) -> tuple[torch.Tensor, list[str]]:
    torch.manual_seed(0)
    config = AutoencoderKLConfig(latent_channels=4, channels=(8, 16), blocks=1, mid_attention=False, norm_groups=4)
    return cache_latents(BatchLoader(ShapesDataset(16), 4, seed=0), AutoencoderKL(config), 16, out / "cache", "key")


def test_two_processes_share_the_work_and_agree_with_one(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    (tmp_path / "two").mkdir()
    done = subprocess.run([*launcher, program, tmp_path / "two"], env=environment, check=True, capture_output=True, text=True)
    alone, captions = cached(tmp_path / "one")
    line = f"|2|16|{captions[0]}|{captions[1]}"
    expected = [f"0{line}", f"1{line}|mark-0"]  # the main process saw no mark when it was its turn, the other one the main's
    assert sorted(line for line in done.stdout.splitlines() if "|2|" in line) == expected
    assert {path.name for path in (tmp_path / "two" / "cache").iterdir()} == {f"key-16-{r}-of-2.safetensors" for r in (0, 1)}
    for rank in (0, 1):
        from safetensors.torch import load_file

        part = load_file(tmp_path / "two" / "cache" / f"key-16-{rank}-of-2.safetensors")["latents"]
        assert torch.equal(part, alone[rank * 8 : rank * 8 + 8])


def test_what_was_encoded_is_read_back(tmp_path, monkeypatch):
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


def test_captions_are_read_once():
    from daguerre.diffusion import Conditioning

    calls: list[str] = []

    def read(captions: list[str]) -> Conditioning:
        calls.extend(captions)
        return Conditioning(context=torch.tensor([[[float(len(c))]] for c in captions]))

    remembered = CachedCaptions(read)
    for _ in range(2):
        context = remembered(["a", "bcd", "a"]).context
        assert context is not None
        assert context.flatten().tolist() == [1, 3, 1]
    assert calls == ["a", "bcd"]


@pytest.fixture
def command(tmp_path: Path):
    """Starts `daguerre train …` in two processes; whatever happens, nothing of it is left running."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "daguerre", "train", *arguments, "--processes", "2"]
        started.append(subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_a_mistake_that_every_process_finds_is_one_sentence(command, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    process = command("kl", "--data", str(tmp_path), "--size", "32", "--batch-size", "3", "--out", "out", "--loss.adversarial", "0")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert err == "daguerre: batch_size 3 is not a multiple of 1 parts x 2 processes.\n"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_ctrl_c_stops_all_processes_after_one_step_and_leaves_none(command, tmp_path):
    process = command("shapes", "--out", "out")
    lines = iter(process.stderr.readline, "")
    assert next(line for line in lines if line.startswith("autoencoder")).startswith("autoencoder 20/")
    children = children_of(process)
    process.send_signal(signal.SIGINT)
    *_, last = lines
    assert process.wait(timeout=300) == 1
    assert re.fullmatch(r"daguerre: Stopped after step (\d+) of \d+; run the same command again to go on from there\.\n", last)
    assert len(children) >= 2
    wait_until(lambda: not running(children))
    assert checkpoints(tmp_path / "out" / "autoencoder" / "checkpoints")


def test_no_process_outlives_the_one_that_was_killed(tmp_path):
    (tmp_path / "mark.py").write_text(
        "import time\nfrom pathlib import Path\ndef mark():\n    Path(__file__).with_name('here').touch()\n    time.sleep(600)\n"
    )
    program = "from daguerre.training.processes import together; from mark import mark; together(1, mark)"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    wait_until((tmp_path / "here").exists)
    children = children_of(process)
    process.kill()
    process.wait()
    wait_until(lambda: not running(children))


def children_of(process: subprocess.Popen) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def running(children: list[str]) -> list[str]:
    return [child for child in children if Path(f"/proc/{child}").exists()]


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("given", ["two", "0", "9999"])
def test_impossible_numbers_of_processes_are_refused(given, capsys):
    assert main(["train", "shapes", "--processes", given]) == 1
    assert "processes" in capsys.readouterr().err
