"""The parts of a batch have the random numbers of the whole batch, so a gradient does not depend on how the batch is divided."""

from pathlib import Path

import pytest
import torch

from daguerre.data.loader import Batch
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.options.ddpm import DDPMRecipe, UNetShape
from daguerre.training.recipes.ddpm import build_model, encoder_of


def numbers(random: BatchRandom) -> list[torch.Tensor]:
    """One of each kind; then one that all samples share."""
    of_samples = random.normal((2, 3)), random.uniform(), random.integers(1000, (4,)), random.normal(dtype=torch.float64)
    seeds = torch.tensor([generator.initial_seed() for generator in random.generators()])
    return [*of_samples, seeds, torch.rand(3, generator=random.generator)]


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_the_parts_of_a_batch_have_the_numbers_of_the_whole(parts: int):
    share = 8 // parts
    whole, *pieces = (numbers(BatchRandom.of_step(1, 5, 8, n * share, (n + 1) * share)) for n in (0, *range(parts)))
    *expected, shared = numbers(BatchRandom.of_step(1, 5, 8, 0, 8))
    assert all(torch.equal(torch.cat(values), both) for values, both in zip(zip(*pieces, strict=True), expected, strict=False))
    assert all(torch.equal(piece[-1], shared) for piece in (whole, *pieces))
    assert len({float(numbers(BatchRandom.of_step(seed, step, 8, 0, 8))[1][0]) for seed in (1, 2) for step in (5, 6)}) == 4


@pytest.mark.parametrize("parts", [2, 4])
def test_the_gradient_of_a_diffusion_loss_does_not_depend_on_the_number_of_parts(parts: int):
    """With min-SNR weights and captions that are dropped at random. The bound is that of sums of 8 · 16 · 16 terms."""
    torch.manual_seed(0)
    model = build_model(DDPMRecipe(data="", out=Path(), resolution=16, shape=UNetShape((8, 16), 1, (1,), 8)), None)
    task = DiffusionTask(model, DiffusionLoss(snr_gamma=5.0, caption_dropout=0.5), encoder_of(model), ())
    batch = Batch(torch.randn(8, 3, 16, 16), [""] * 8)

    def gradient(parts: int) -> torch.Tensor:
        model.unet.zero_grad()
        share = 8 // parts
        for first in range(0, 8, share):
            random = BatchRandom.of_step(0, 3, 8, first, first + share)
            ((_, loss, _),) = task.losses(batch[first : first + share], task.networks, random, 3)
            (loss / parts).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.unet.parameters() if parameter.grad is not None])

    whole = gradient(1)
    assert (gradient(parts) - whole).abs().max() < 2048**0.5 * torch.finfo(torch.float32).eps * whole.abs().max()
