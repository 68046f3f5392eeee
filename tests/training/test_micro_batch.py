"""The number of parts of a batch that fit into memory, by trying."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.training import loop, micro_batch
from daguerre.training.config import LoopConfig
from daguerre.training.loop import train
from tests.training.test_loop import CONFIG, Interrupted, NumberBatches, TwoNetworks

GIGABYTE = 1 << 30
ACCELERATOR: Any = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1, gather=lambda found: found, autocast=lambda: torch.autocast("cpu", enabled=False)
)


class Wide:
    """An image takes four to six tensors of 16 MB: the inputs of the layer and of the sine, the cosine and its product, up to two more."""

    name, ema_networks = "wide", ()

    def __init__(self) -> None:
        self.networks: dict[str, nn.Module] = {"net": nn.Linear(4, 4)}

    def to(self, device: torch.device) -> None: ...

    def losses(self, batch: Tensor, networks, random, step):
        yield "net", networks["net"](batch.repeat(1, 1 << 20, 1)).sin().mean(), {}

    def sample(self) -> None: ...


def found_with(free: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(micro_batch, "free_memory", lambda: free)
    task = Wide()
    before = {name: value.clone() for name, value in task.networks["net"].state_dict().items()}
    random = torch.get_rng_state()
    parts = micro_batch.find_parts(task, torch.ones(4, 1, 4), LoopConfig(batch_size=4), ACCELERATOR)
    assert all(torch.equal(value, before[name]) for name, value in task.networks["net"].state_dict().items())
    assert all(p.grad is None for p in task.networks["net"].parameters())
    assert torch.equal(torch.get_rng_state(), random)
    return parts


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
def test_the_parts_are_the_largest_that_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert found_with(8 * GIGABYTE, monkeypatch) == 1
    assert "1 part of 4 images" in capsys.readouterr().err
    assert found_with(GIGABYTE // 4, monkeypatch) == 2
    assert found_with(1, monkeypatch) == 4
    assert "4 parts of 1 image, about 0." in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("this may not suffice")


def test_a_run_with_auto_is_the_run_with_the_number_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    auto = replace(CONFIG, gradient_accumulation_steps="auto")
    monkeypatch.setattr(loop, "find_parts", lambda *_: 4)
    train(TwoNetworks(), NumberBatches(), replace(CONFIG, gradient_accumulation_steps=4), tmp_path / "number")
    task = TwoNetworks()
    task.stop_at = 6
    with pytest.raises(Interrupted):
        train(task, NumberBatches(), auto, tmp_path / "auto")
    monkeypatch.setattr(loop, "find_parts", lambda *_: pytest.fail("the checkpoint has the number"))
    train(TwoNetworks(), NumberBatches(), auto, tmp_path / "auto")
    number, found = (load_file(tmp_path / name / "checkpoints/step-00000012/networks.safetensors") for name in ("number", "auto"))
    assert all(torch.equal(number[name], found[name]) for name in number)


def test_where_memory_cannot_be_measured_a_number_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> Iterator[None]:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(DaguerreError, match="give a number"):
        micro_batch.find_parts(Wide(), torch.ones(4, 1, 4), LoopConfig(batch_size=4), ACCELERATOR)
