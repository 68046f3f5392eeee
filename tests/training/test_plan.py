"""The plan of a training: the numbers that it prints, against the files of the run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from daguerre.data import ShapesDataset
from daguerre.training.checkpoint import checkpoints
from daguerre.training.config import LoopConfig
from daguerre.training.loop import train
from daguerre.training.plan import epoch_images, example_caption, print_plan

LOOP = LoopConfig(max_train_steps=3, batch_size=4, sample_every=0, checkpoint_every=1)


class Large:
    """A network whose tensors outweigh the headers of its files."""

    name, ema_networks = "large", ("large",)

    def __init__(self) -> None:
        self.networks: dict[str, nn.Module] = {"large": nn.Linear(500, 500)}

    def to(self, device: torch.device) -> None: ...

    def losses(self, batch, networks, random, step):
        yield "large", networks["large"](batch).square().mean(), {}

    def sample(self) -> None:
        return None


class Batches:
    def stream(self, start: int, workers: int = 1, *, processes: bool = False):
        while True:
            yield torch.ones(4, 500)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_size_of_a_checkpoint_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str], ema_decay: float):
    task, loop = Large(), replace(LOOP, ema_decay=ema_decay)
    print_plan(task.networks, loop, tmp_path, images=8)
    plan = capsys.readouterr().err
    assert "training: 0.251 million parameters of the large, steps: 3, batch size: 4, epochs: 1.5" in plan
    train(task, Batches(), loop, tmp_path)
    capsys.readouterr()
    *_, newest = checkpoints(tmp_path / "checkpoints")
    size = sum(file.stat().st_size for file in newest.iterdir())
    stated = float(plan.split("disk: ")[1].split(" GB")[0]) * 1e9
    assert abs(stated - size) < 0.01 * size
    print_plan(task.networks, loop, tmp_path, images=None)
    plan = capsys.readouterr().err
    assert "new images in every step" in plan
    assert "a resumed run uses part of it already" in plan


def test_rendered_images_have_no_epochs():
    assert epoch_images(ShapesDataset(16)) is None


def test_the_example_is_the_shortest_plain_caption():
    assert example_caption(["a long caption", "-x", "a\tb", " ", "a cat"]) == "a cat"
    assert example_caption([""]) == "an image"
