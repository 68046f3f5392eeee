"""Sharded training by torchrun on two CPU processes: the run, the averages and the saved model equal those of data-parallel training; it
resumes bit by bit, in another number of processes up to rounding, and from the checkpoint before a damaged one."""

import os
import shutil
import signal
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from daguerre.errors import DaguerreError
from daguerre.training.checkpoint import checkpoints
from daguerre.training.config import LoopConfig
from daguerre.training.distributed.processes import rank, state
from daguerre.training.options.ddpm import DDPMRecipe, UNetShape
from daguerre.training.recipes.ddpm import run
from tests.training.launch import TORCHRUN, needs_two_cores, run_program

IMPORTS = "from tests.training.test_sharding import everything, killed_while_saving, train\n"
LOOP = LoopConfig(
    max_train_steps=8,
    batch_size=4,
    learning_rate=1e-3,
    lr_scheduler="constant",
    lr_warmup_steps=2,
    ema_decay=0.9,
    sample_every=0,
    checkpoint_every=3,
    log_every=4,
)
SHAPE = UNetShape((24,), blocks=1, attention_levels=(), head_width=24)  # the last weights, of 3 channels, cannot be halved


def train(out: Path, **options: object) -> None:
    run(DDPMRecipe("shapes", out, resolution=16, shape=SHAPE, loop=replace(LOOP, **options)))  # type: ignore[arg-type]


def everything(out: Path) -> None:
    """What each of two processes runs."""
    train(out / "parallel")
    train(out / "whole", sharding="fsdp", sample_every=4)
    train(out / "offloaded", sharding="fsdp", cpu_offload=True, gradient_checkpointing=True)
    train(out / "parts", sharding="fsdp", max_train_steps=4)
    train(out / "parts", sharding="fsdp")
    state().destroy_process_group()


def killed_while_saving(out: Path) -> None:
    """The run "whole", whose second process is killed after it wrote its share of the second checkpoint, unless it started again."""
    write, number = HuggingFaceStorageWriter.write_data, count(1)

    def write_then_die(self, plan, planner):
        written = write(self, plan, planner)
        if next(number) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    if rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        HuggingFaceStorageWriter.write_data = write_then_die
    train(out, sharding="fsdp")
    state().destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `everything` wrote under torchrun."""
    out = tmp_path_factory.mktemp("sharded")
    done = run_program(out, IMPORTS + "everything(Path())", TORCHRUN)
    assert done.returncode == 0, done.stderr
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def assert_close(one: Path, other: Path) -> None:
    """Equal but for the order of sums, to 1e-5 of weights of about 1; the steps themselves are up to 1e-3 each."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-5)


@needs_two_cores
def test_the_averages_equal_those_of_data_parallel_training(two: Path):
    assert_close(two / "whole", two / "parallel")
    assert max(w.std() for w in weights(two / "whole").values()) > 0
    assert (two / "whole" / "samples" / "000008.png").is_file()


@needs_two_cores
def test_a_resumed_run_has_the_same_bits(two: Path):
    first, second = weights(two / "whole"), weights(two / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_two_cores
def test_cpu_offload_and_gradient_checkpointing_give_the_same_bits(two: Path):
    first, second = weights(two / "whole"), weights(two / "offloaded")
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_two_cores
def test_each_process_writes_its_share(two: Path):
    newest = checkpoints(two / "whole" / "checkpoints")[-1]
    assert newest.name == "step-00000008"
    sizes = [path.stat().st_size for path in newest.glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)
    assert not list(newest.parent.glob(".*"))


@needs_two_cores
@pytest.mark.long
def test_one_process_continues_from_the_checkpoint_before_a_damaged_one(two: Path, tmp_path: Path):
    shutil.copytree(two / "whole" / "checkpoints", tmp_path / "one" / "checkpoints")
    shard = next(checkpoints(tmp_path / "one" / "checkpoints")[-1].glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = run_program(tmp_path, IMPORTS + "train(Path('one'), sharding='fsdp')", [sys.executable], **alone)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped the checkpoint one/checkpoints/step-00000008, which is damaged") == 1
    assert "resuming after step 6" in done.stdout + done.stderr
    assert_close(tmp_path / "one", two / "whole")


@needs_two_cores
@pytest.mark.long
def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(two: Path, tmp_path: Path):
    done = run_program(tmp_path, IMPORTS + "killed_while_saving(Path('out'))", [*TORCHRUN, "--max-restarts=1"])
    assert done.returncode == 0, done.stderr
    assert "resuming after step 3" in done.stdout + done.stderr
    first, second = weights(two / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [path.name for path in sorted((tmp_path / "out" / "checkpoints").iterdir())] == ["step-00000006", "step-00000008"]


@needs_two_cores
def test_a_sharded_checkpoint_is_refused_without_sharding(two: Path):
    with pytest.raises(DaguerreError, match="belongs to a run with sharding fsdp, not none"):
        train(two / "whole")
    assert (two / "whole" / "model").is_dir()
