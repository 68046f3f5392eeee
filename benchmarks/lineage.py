"""The line that leads from autoencoders to latent diffusion, side by side with plain PyTorch, in one run.

    python -m benchmarks.lineage [--runs 3] [--out benchmarks/lineage.md]

Every figure is a median over `--runs` runs; ours and the plain loop take turns, so that a change in the machine's speed meets both.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.priors import Row, priors
from daguerre.data import Batch, BatchLoader, ShapesDataset
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.training.lineage_options import (
    ADVERSARIAL,
    FIRST_STAGE_LOOP,
    FirstStageRecipe,
    KLRecipe,
    PlainRecipe,
    VariationalRecipe,
    VQGANRecipe,
    VQVAERecipe,
)
from daguerre.training.loop import train
from daguerre.training.objectives.vae_vq import bits_per_number
from daguerre.training.recipes.first_stage import build_network, training_task

SIZE, STEPS = 32, 8
AT_ONCE = replace(ADVERSARIAL, adversarial_start=0, adversarial_ramp=0)  # so that the critic is measured, too
CRITIC = PatchDiscriminatorConfig(**asdict(KLRecipe("shapes").discriminator))
FIRST_STAGES: dict[str, FirstStageRecipe] = {
    "autoencoder": PlainRecipe("shapes", resolution=SIZE),
    "vae": VariationalRecipe("shapes", resolution=SIZE),
    "kl, with a critic": KLRecipe("shapes", resolution=SIZE, loss=replace(AT_ONCE, kl=1e-3)),
    "vqvae": VQVAERecipe("shapes", resolution=SIZE, codebook_start=0),
    "vqgan, with a critic": VQGANRecipe("shapes", resolution=SIZE, loss=AT_ONCE, codebook_start=0),
}


def first_stages(runs: int) -> list[Row]:
    """Training pictures a second of each first stage: the whole loop, against one written by hand for the same network and losses.

    Both read the same batches from memory, in bf16 autocast, clip the gradient and average the weights; ours also watches for numbers that
    are not finite, logs and can be resumed. Seconds are the processor's own, which other programs on the machine do not lengthen, and the
    first step of each run is not counted.
    """
    drawn = [BatchLoader(ShapesDataset(SIZE), FIRST_STAGE_LOOP.batch_size, 0).batch(step) for step in range(STEPS)]
    rows = []
    for name, recipe in FIRST_STAGES.items():
        speeds = [(ours(recipe, drawn), plain(recipe, drawn)) for _ in range(runs)]
        a, b = (statistics.median(each) for each in zip(*speeds, strict=True))
        rows.append((f"training, {name}, f{recipe.f}, {SIZE}×{SIZE}, bf16, pictures/s", a, b, "≥ 1 ×"))
    return rows


class InMemory:
    """Batches that are there already, and the times at which they were asked for."""

    def __init__(self, drawn: list[Batch]):
        self.drawn = drawn
        self.asked: list[float] = []

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Batch]:
        for batch in self.drawn[start:]:
            self.asked.append(time.process_time())
            yield batch

    def speed(self) -> float:
        """Pictures a second, from the second batch to the last."""
        return (len(self.asked) - 2) * len(self.drawn[0]) / (self.asked[-1] - self.asked[1])


def ours(recipe: FirstStageRecipe, drawn: list[Batch]) -> float:
    """Pictures a second of `train`."""
    torch.manual_seed(0)
    stage, batches = training_task(recipe, build_network(recipe), drawn[0].x[:8], None), InMemory(drawn)
    with tempfile.TemporaryDirectory() as out:
        train(stage, batches, replace(FIRST_STAGE_LOOP, max_train_steps=STEPS, sample_every=0), Path(out))
    return batches.speed()


def plain(recipe: FirstStageRecipe, drawn: list[Batch]) -> float:
    """Pictures a second of the loop that one writes by hand."""
    torch.manual_seed(0)
    network = build_network(recipe).train()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(FIRST_STAGE_LOOP.ema_decay))
    optimizer = torch.optim.AdamW(network.parameters(), lr=FIRST_STAGE_LOOP.learning_rate, betas=FIRST_STAGE_LOOP.betas)
    adversarial = recipe.loss.adversarial if isinstance(recipe, KLRecipe | VQGANRecipe) else 0.0
    critic = PatchDiscriminator(CRITIC).train() if adversarial else None
    critics = (
        torch.optim.AdamW(critic.parameters(), lr=FIRST_STAGE_LOOP.learning_rate, betas=FIRST_STAGE_LOOP.betas)
        if critic is not None
        else None
    )

    def step(loss: Tensor, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), FIRST_STAGE_LOOP.max_grad_norm)
        optimizer.step()

    batches = InMemory(drawn)
    for batch in batches.stream(0):
        x = batch.x
        with torch.autocast("cpu", torch.bfloat16):
            loss, rebuilt = objective(recipe, network, x)
            if critic is not None:
                g = -critic(rebuilt).mean()
                last = network.last_layer
                of_rec, of_g = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (loss, g))
                loss = loss + adversarial * (of_rec / (of_g + 1e-4)).clamp(0, 1e4).detach() * g
        step(loss, network, optimizer)
        if critic is not None and critics is not None:
            with torch.autocast("cpu", torch.bfloat16):
                d = (F.relu(1 - critic(x)).mean() + F.relu(1 + critic(rebuilt.detach())).mean()) / 2
            step(d, critic, critics)
        averaged.update_parameters(network)
    return batches.speed()


def objective(recipe: FirstStageRecipe, network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A first stage's loss on pictures x, and their reconstruction."""
    if isinstance(network, AutoencoderKL):
        noise = torch.randn(len(x), network.config.latent_channels, SIZE // recipe.f, SIZE // recipe.f)
        rebuilt, posterior = network(x, None if isinstance(recipe, PlainRecipe) else noise)
        rebuilt = rebuilt.float()
        if isinstance(recipe, VariationalRecipe):
            deviation = (x - rebuilt.detach()).square().mean().sqrt()
            return bits_per_number(x, rebuilt, posterior, deviation).mean(), rebuilt
        own = posterior.kl().mean() / noise[0].numel() * 1e-3 if isinstance(recipe, KLRecipe) else 0.0
    else:
        rebuilt, _, own = network(x)
        rebuilt = rebuilt.float()
    error = rebuilt - x
    slopes = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    return error.abs().mean() + error.square().mean() + slopes + own, rebuilt


MEASURES: tuple[Callable[[int], list[Row]], ...] = (first_stages, priors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/lineage.md"))
    options = parser.parse_args()
    rows = [row for measure in MEASURES for row in measure(options.runs)]
    lines = ["| what | daguerre | beside it | ratio | aim |", "|---|---|---|---|---|"]
    for what, ours, theirs, aim in rows:
        beside = " | " if theirs is None else f"{theirs:.3g} | {ours / theirs:.2f}"
        lines.append(f"| {what} | {ours:.3g} | {beside} | {aim} |")
    table = "\n".join(lines)
    print(table)
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    options.out.write_text(
        f"# The line that leads here, measured\n\n`python -m benchmarks.lineage`, medians of {options.runs} runs; {threads}.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
