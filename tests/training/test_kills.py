"""Recipes that are killed at random moments, with SIGKILL, and started again end with the same bytes as without interruption.

DAGUERRE_KILLS=100 make check-long kills each recipe 100 times; the default is few.
"""

import os
import random
import time
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from daguerre.cli.commands import train
from daguerre.data import ShapesDataset

KILLS = int(os.environ.get("DAGUERRE_KILLS", "3"))
LIMIT = 600  # seconds for one run

LOOP = "--batch-size 4 --max-train-steps 12 --lr-warmup-steps 2 --checkpoint-every 2 --log-every 4 --threads 1"
BUILT_IN = "--data shapes --resolution 16 --sample-every 6"
OWN = "--data images --resolution 32 --mixed-precision no --sample-every 0"
FIRST_STAGE = f"{BUILT_IN} --f 2 --base-channels 8"
CODES = "--codebook-size 16 --code-dim 4 --codebook-start 2"
GAN = "--adversarial-weight 0.5 --adversarial-start 3 --adversarial-ramp 2 --discriminator-channels 8 --discriminator-layers 1"
UNET = "--channels 16 32 --blocks 1 --attention-levels 1 --head-width 16"
# The options of each recipe. The ones with a first stage find it in the folder of its recipe.
RECIPES = {
    "ddpm": f"{BUILT_IN} {UNET}",
    "autoencoder": FIRST_STAGE,
    "vae": FIRST_STAGE,
    "vqvae": f"{FIRST_STAGE} {CODES}",
    "vqgan": f"{FIRST_STAGE} {CODES} {GAN}",
    "kl": f"{FIRST_STAGE} {GAN}",
    "ldm": f"{BUILT_IN} {UNET} --num-images 16 --first-stage kl/model",
    "prior": f"{BUILT_IN} --num-images 16 --hidden-size 16 --layers 1 --heads 2 --first-stage vqvae/model",
    "text-to-image": f"{OWN} --from-scratch --unet-channels 32 --unet-blocks 1",
    "lora": f"{OWN} --rank 2",
    "textual-inversion": f"{OWN} --word zorble",
}
NEEDS = {"ldm": "kl", "prior": "vqvae"}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts `daguerre train`. A server that has imported everything once starts the processes, so that most kills meet the training."""
    monkeypatch.chdir(folder)
    (folder / "images").mkdir(exist_ok=True)
    for i in range(6):
        sample = ShapesDataset(32).sample(i, np.random.default_rng(i))
        sample.image.save(folder / "images" / f"{i}.png")
        (folder / "images" / f"{i}.txt").write_text(sample.caption)
    context = get_context("forkserver")
    context.set_forkserver_preload(["daguerre.training.recipes.ldm", "daguerre.training.recipes.adapters.lora"])
    started: list[ForkServerProcess] = []

    def run(name: str, out: str) -> ForkServerProcess:
        process = context.Process(target=train.main, args=(f"{name} {RECIPES[name]} {LOOP} --out {out}".split(),))
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.join()


def finish(process: ForkServerProcess) -> None:
    process.join(LIMIT)
    assert process.exitcode == 0


def weights(out: Path) -> dict[tuple[str, str], bytes]:
    """The tensors of the finished files of a run, by file and name. A file may have the name of the run; metadata has no fixed order.

    Temporary files of a killed process stay behind.
    """
    found = [path.relative_to(out) for path in out.rglob("*.safetensors")]
    files = [out / path for path in found if path.parts[0] != "checkpoints" and not path.parts[0].startswith(".")]
    return {
        (str(path.relative_to(out).with_name(path.name.replace(out.name, "run"))), name): tensor.numpy().tobytes()
        for path in files
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_killed_anywhere_ends_with_the_same_weights(folder: Path, start, name: str):
    if name in NEEDS and not (folder / NEEDS[name] / "model").is_dir():
        finish(start(NEEDS[name], NEEDS[name]))
    began = time.monotonic()
    finish(start(name, name))
    duration, expected = time.monotonic() - began, weights(folder / name)
    assert expected
    moments = random.Random(name)
    kills = attempt = 0
    while kills < KILLS:
        began, process = time.monotonic(), start(name, f"{name}-{attempt}")
        process.join(moments.uniform(0, duration))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        if process.exitcode == 0:  # it was faster; the next run starts from the beginning
            duration = min(duration, time.monotonic() - began)
            assert weights(folder / f"{name}-{attempt}") == expected
            attempt += 1
        else:
            assert process.exitcode == -9
    finish(start(name, f"{name}-{attempt}"))
    assert weights(folder / f"{name}-{attempt}") == expected
