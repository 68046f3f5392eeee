"""Training speed of first stages, and speed of priors, compared with plain PyTorch.

    python -m benchmarks.training_speed [--runs 3] [--out benchmarks/training_speed.md]

Every figure is a median over `--runs` runs; Daguerre and the plain loop alternate, so that changes in machine speed affect both.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.priors import Row, priors
from daguerre.data import Batch, BatchLoader, ShapesDataset
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.training.loop import train
from daguerre.training.objectives.vae_vq import bits_per_number
from daguerre.training.options.first_stage import (
    ADVERSARIAL_LOSS,
    FIRST_STAGE_LOOP,
    AutoencoderRecipe,
    FirstStageRecipe,
    KLRecipe,
    VAERecipe,
    VQGANRecipe,
    VQVAERecipe,
)
from daguerre.training.recipes.first_stage import build_network, training_task

SIZE, STEPS = 32, 8
ADVERSARIAL_FROM_START = replace(ADVERSARIAL_LOSS, adversarial_start=0, adversarial_ramp=0)  # so that the discriminator is measured, too
DISCRIMINATOR = PatchDiscriminatorConfig(channels=KLRecipe("shapes").discriminator_channels, layers=KLRecipe("shapes").discriminator_layers)
FIRST_STAGES: dict[str, FirstStageRecipe] = {
    "autoencoder": AutoencoderRecipe("shapes", resolution=SIZE),
    "vae": VAERecipe("shapes", resolution=SIZE),
    "kl, with a discriminator": KLRecipe("shapes", resolution=SIZE, loss=replace(ADVERSARIAL_FROM_START, kl_weight=1e-3)),
    "vqvae": VQVAERecipe("shapes", resolution=SIZE, codebook_start=0),
    "vqgan, with a discriminator": VQGANRecipe("shapes", resolution=SIZE, loss=ADVERSARIAL_FROM_START, codebook_start=0),
}


def first_stages(runs: int) -> list[Row]:
    """Training images per second of each first stage: the full training loop against a minimal loop with the same network and losses.

    Both take the same batches from memory, use bf16 autocast, clip gradients and average the weights; the full loop also checks for
    non-finite numbers, logs and writes checkpoints. Times are CPU seconds; the first step of each run is not counted.
    """
    batches = [BatchLoader(ShapesDataset(SIZE), FIRST_STAGE_LOOP.batch_size, 0).batch(step) for step in range(STEPS)]
    rows = []
    for name, recipe in FIRST_STAGES.items():
        speeds = [(daguerre_speed(recipe, batches), plain_speed(recipe, batches)) for _ in range(runs)]
        a, b = (statistics.median(each) for each in zip(*speeds, strict=True))
        rows.append((f"training, {name}, f{recipe.f}, {SIZE}×{SIZE}, bf16, images/s", a, b, "≥ 1 ×"))
    return rows


class InMemory:
    """Batches in memory that record the times of their use."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches
        self.asked: list[float] = []

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Batch]:
        for batch in self.batches[start:]:
            self.asked.append(time.process_time())
            yield batch

    def speed(self) -> float:
        """Images per second, from the second batch to the last."""
        return (len(self.asked) - 2) * len(self.batches[0]) / (self.asked[-1] - self.asked[1])


def daguerre_speed(recipe: FirstStageRecipe, batches: list[Batch]) -> float:
    """Images per second of `train`."""
    torch.manual_seed(0)
    task, loader = training_task(recipe, build_network(recipe), batches[0].x[:8], None), InMemory(batches)
    with tempfile.TemporaryDirectory() as out:
        train(task, loader, replace(FIRST_STAGE_LOOP, max_train_steps=STEPS, sample_every=0), Path(out))
    return loader.speed()


def plain_speed(recipe: FirstStageRecipe, batches: list[Batch]) -> float:
    """Images per second of a minimal loop."""
    torch.manual_seed(0)
    network = build_network(recipe).train()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(FIRST_STAGE_LOOP.ema_decay))
    optimizer = torch.optim.AdamW(network.parameters(), lr=FIRST_STAGE_LOOP.learning_rate, betas=FIRST_STAGE_LOOP.betas)
    adversarial = recipe.loss.adversarial_weight if isinstance(recipe, KLRecipe | VQGANRecipe) else 0.0
    discriminator = PatchDiscriminator(DISCRIMINATOR).train() if adversarial else None
    discriminator_optimizer = (
        torch.optim.AdamW(discriminator.parameters(), lr=FIRST_STAGE_LOOP.learning_rate, betas=FIRST_STAGE_LOOP.betas)
        if discriminator is not None
        else None
    )

    def step(loss: Tensor, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), FIRST_STAGE_LOOP.max_grad_norm)
        optimizer.step()

    loader = InMemory(batches)
    for batch in loader.stream(0):
        x = batch.x
        with torch.autocast("cpu", torch.bfloat16):
            loss, reconstruction = objective(recipe, network, x)
            if discriminator is not None:
                g = -discriminator(reconstruction).mean()
                last = network.last_layer
                of_rec, of_g = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (loss, g))
                loss = loss + adversarial * (of_rec / (of_g + 1e-4)).clamp(0, 1e4).detach() * g
        step(loss, network, optimizer)
        if discriminator is not None and discriminator_optimizer is not None:
            with torch.autocast("cpu", torch.bfloat16):
                d = (F.relu(1 - discriminator(x)).mean() + F.relu(1 + discriminator(reconstruction.detach())).mean()) / 2
            step(d, discriminator, discriminator_optimizer)
        averaged.update_parameters(network)
    return loader.speed()


def objective(recipe: FirstStageRecipe, network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A first stage's loss on images x, and their reconstruction."""
    if isinstance(network, AutoencoderKL):
        noise = torch.randn(len(x), network.config.latent_channels, SIZE // recipe.f, SIZE // recipe.f)
        reconstruction, posterior = network(x, None if isinstance(recipe, AutoencoderRecipe) else noise)
        reconstruction = reconstruction.float()
        if isinstance(recipe, VAERecipe):
            deviation = (x - reconstruction.detach()).square().mean().sqrt()
            return bits_per_number(x, reconstruction, posterior, deviation).mean(), reconstruction
        own = posterior.kl().mean() / noise[0].numel() * 1e-3 if isinstance(recipe, KLRecipe) else 0.0
    else:
        reconstruction, _, own = network(x)
        reconstruction = reconstruction.float()
    error = reconstruction - x
    slopes = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    return error.abs().mean() + error.square().mean() + slopes + own, reconstruction


MEASURES: tuple[Callable[[int], list[Row]], ...] = (first_stages, priors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/training_speed.md"))
    options = parser.parse_args()
    rows = [row for measure in MEASURES for row in measure(options.runs)]
    lines = ["| what | daguerre | reference | ratio | aim |", "|---|---|---|---|---|"]
    for what, daguerre, reference, aim in rows:
        comparison = " | " if reference is None else f"{reference:.3g} | {daguerre / reference:.2f}"
        lines.append(f"| {what} | {daguerre:.3g} | {comparison} | {aim} |")
    table = "\n".join(lines)
    print(table)
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    options.out.write_text(
        "# Training and sampling speed of first stages and priors\n\n"
        f"`python -m benchmarks.training_speed`, medians of {options.runs} runs; {threads}.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
