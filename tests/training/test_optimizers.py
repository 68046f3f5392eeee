"""The optimizers take the steps of their reference implementations."""

import sys
from pathlib import Path

import pytest
import torch
from prodigyopt import Prodigy as ReferenceProdigy
from torch import nn

from daguerre.errors import DaguerreError
from daguerre.training.checkpoint import TrainState, restore_checkpoint, save_checkpoint
from daguerre.training.config import LoopConfig
from daguerre.training.optimizers import Prodigy, make_optimizer

STEPS = 60


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    nn.init.zeros_(layers[2].weight)  # pyright: ignore[reportArgumentType]  # as a LoRA's up
    return layers


def trained(trainee: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Its losses over some steps with warm-up."""
    generator, losses = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] *= min(1.0, (step + 1) / 5) / min(1.0, max(step, 1) / 5)
        x = torch.randn(16, 4, generator=generator)
        loss = (trainee(x) - x[:, :3] * x[:, 1:].sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_prodigy_is_that_of_its_authors(capsys: pytest.CaptureFixture[str]):
    ours, theirs = network(), network()
    optimizer = make_optimizer(ours, LoopConfig(optimizer="prodigy", learning_rate=1.0, weight_decay=0.1))
    assert isinstance(optimizer, Prodigy)
    groups = [{"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in theirs.parameters() if p.ndim == 1]}]  # fmt: skip
    reference = ReferenceProdigy(groups, betas=(0.9, 0.99), use_bias_correction=True, safeguard_warmup=True)
    for each in (optimizer, reference):
        for group in each.param_groups:
            group["lr"] = 0.2
    losses = trained(ours, optimizer)
    # d is rounded to float32 in each step, 60 · ε in all; the estimate's sums cancel by at most another two digits.
    assert losses == pytest.approx(trained(theirs, reference), rel=1e-3)
    assert optimizer.d == pytest.approx(reference.param_groups[0]["d"], rel=1e-3)
    assert optimizer.d > 1e-3  # it found a rate
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-3 * b.abs().max().item())


def test_adafactor_takes_the_given_rate():
    """The update of a factored second moment, by the formulas of section 5 of the paper, for the first step."""
    trainee = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(trainee.weight)  # a rate relative to the weights would be almost 0
    optimizer = make_optimizer(trainee, LoopConfig(optimizer="adafactor", learning_rate=1e-2))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    (trainee(x) - x[:, :3]).square().mean().backward()
    grad = trainee.weight.grad
    assert grad is not None
    square = grad.square()
    moment = square.mean(1, keepdim=True) @ square.mean(0, keepdim=True) / square.mean()  # decay 1 − 1^−0.8 = 0: no average yet
    update = grad / moment.sqrt()
    update /= max(1.0, update.square().mean().sqrt().item())
    optimizer.step()
    assert torch.allclose(trainee.weight, -1e-2 * update, rtol=1e-4, atol=0)


def test_adafactor_stores_less():
    wide = nn.Linear(64, 64, bias=False)
    optimizer = make_optimizer(wide, LoopConfig(optimizer="adafactor"))
    wide(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert sum(value.numel() for state in optimizer.state.values() for value in state.values()) < 0.05 * wide.weight.numel()


def test_prodigy_refuses_the_rates_of_other_optimizers():
    with pytest.raises(DaguerreError, match=r"learning_rate is 0\.0001, but Prodigy finds the rate itself .* --learning-rate 1"):
        LoopConfig(optimizer="prodigy")


def test_moments_of_8_bits_resume_exactly_and_take_almost_the_steps_of_adamw(tmp_path: Path):
    """The library also computes on a CPU, where training refuses it, since it is slow there."""
    pytest.importorskip("bitsandbytes")

    def wide() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 1024), nn.Tanh(), nn.Linear(1024, 3))  # tensors below 4,096 values stay in float32

    config = LoopConfig(optimizer="adamw8bit", learning_rate=1e-3)
    first, second, exact = wide(), wide(), wide()
    optimizer = make_optimizer(first, config)
    losses = trained(first, optimizer)
    assert losses == pytest.approx(trained(exact, make_optimizer(exact, LoopConfig(learning_rate=1e-3))), rel=0.05)
    assert any(value.dtype == torch.uint8 for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))
    save_checkpoint(tmp_path, 60, TrainState({"net": first}, {"net": optimizer}, None, {}))
    resumed = make_optimizer(second, config)
    assert restore_checkpoint(tmp_path, TrainState({"net": second}, {"net": resumed}, None, {}))["step"] == 60
    for each in (optimizer, resumed):
        for group in each.param_groups:
            group["lr"] = 1e-3
    assert trained(first, optimizer) == trained(second, resumed)


def test_adamw8bit_without_its_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(DaguerreError, match=r"needs bitsandbytes; install it with pip install"):
        make_optimizer(network(), LoopConfig(optimizer="adamw8bit"))
