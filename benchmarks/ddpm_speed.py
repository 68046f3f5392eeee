"""Training and sampling of `daguerre train ddpm` and `train ldm` against a plain loop with the `UNet2DModel` of diffusers.

    python -m benchmarks.ddpm_speed [--runs 3] [--steps 12] [--threads 2]

Both train the same network on the same batches in memory, at the same precision, with AdamW, clipped gradients and an average of the
weights; the plain loop has no logs, checkpoints or checks. Both sample with DDIM. Figures are medians over `--runs` alternating runs; the
memory is the peak of the process that a run has to itself.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from daguerre.conditioning.class_map_image import UnconditionalConditioner
from daguerre.data import Batch
from daguerre.diffusion import Schedule
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.pipelines import generate
from daguerre.runtime.dtype import has_native_bfloat16
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.options.ddpm import UNetShape
from daguerre.training.recipes.ddpm import SCHEDULES, plain_unet
from daguerre.weights.diffusers.pixel import DDIM
from daguerre.weights.diffusers.unet_config import unet_json

SAMPLES, SAMPLING_STEPS = 16, 10
WARM_UP = 2  # steps that are not counted
# The channels and the side of what is diffused, and the network: the defaults of the two recipes at 32×32 pixels and 16×16 latents.
CASES = {
    "ddpm": (3, 32, UNetShape()),
    "ldm": (4, 16, UNetShape((128, 192), 1, (0, 1))),
    "tiny": (3, 8, UNetShape((16,), 1, (0,), 16)),
}


class FirstChannels(IdentityAutoencoder):
    """Shows three channels of latents as an image, so that sampling is measured without a decoder."""

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :3]


class TimedBatches:
    """Random batches in memory that record when each is requested."""

    def __init__(self, steps: int, batch_size: int, channels: int, side: int):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch_size, channels, side, side, generator=generator)
        self.batch, self.steps, self.times = Batch(x, [""] * batch_size, latent=True), steps, list[float]()

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Batch]:
        for _ in range(start, self.steps):
            self.times.append(time.perf_counter())
            yield self.batch

    def speed(self) -> float:
        """Images per second, after the steps that warm up."""
        return (len(self.times) - 1 - WARM_UP) * len(self.batch) / (self.times[-1] - self.times[WARM_UP])


def loop_config(steps: int, batch_size: int) -> LoopConfig:
    """The settings of both loops."""
    precision = "bf16" if has_native_bfloat16() else "no"
    return LoopConfig(max_train_steps=steps, batch_size=batch_size, mixed_precision=precision, sample_every=0, checkpoint_every=10**6)


def run_daguerre(case: str, steps: int, batch_size: int) -> tuple[float, float]:
    """Images per second in training and in sampling."""
    channels, side, shape = CASES[case]
    torch.manual_seed(0)
    unet = UNet(plain_unet(shape, in_channels=channels, out_channels=channels, classes=None))
    schedule = Schedule(SCHEDULES["linear"])
    model = LatentDiffusion(unet, IdentityAutoencoder(), UnconditionalConditioner(), schedule, "epsilon", case, side, 1.0)
    batches = TimedBatches(steps, batch_size, channels, side)
    task = DiffusionTask(model, DiffusionLoss(), model.conditioner, ())
    with tempfile.TemporaryDirectory() as out:
        train(task, batches, loop_config(steps, batch_size), Path(out))
    shown = replace(model, unet=unet.eval(), autoencoder=FirstChannels(), sampler_config=replace(DDIM, clip=None))
    start = time.perf_counter()
    generate(shown, num_images=SAMPLES, steps=SAMPLING_STEPS)
    return batches.speed(), SAMPLES / (time.perf_counter() - start)


def run_plain(case: str, steps: int, batch_size: int) -> tuple[float, float]:
    """The same in a plain loop with diffusers."""
    import diffusers

    channels, side, shape = CASES[case]
    config = loop_config(steps, batch_size)
    torch.manual_seed(0)
    described = unet_json(plain_unet(shape, in_channels=channels, out_channels=channels, classes=None), side)
    unet = diffusers.UNet2DModel.from_config(described).train()  # type: ignore[union-attr]
    noise_schedule = diffusers.DDPMScheduler(1000, 0.0001, 0.02, "linear")
    averaged = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
    batches = TimedBatches(steps, batch_size, channels, side)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16")
    for batch in batches.stream(0):
        noise, t = torch.randn_like(batch.x), torch.randint(1000, (batch_size,))
        with autocast:
            loss = F.mse_loss(unet(noise_schedule.add_noise(batch.x, noise, t), t).sample.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
        optimizer.step()
        averaged.update_parameters(unet)
    scheduler = diffusers.DDIMScheduler(1000, 0.0001, 0.02, "linear", clip_sample=False)
    scheduler.set_timesteps(SAMPLING_STEPS)
    unet.eval()
    start = time.perf_counter()
    with torch.no_grad():
        x: Tensor = torch.randn(SAMPLES, channels, side, side)
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, int(t), x).prev_sample
    return batches.speed(), SAMPLES / (time.perf_counter() - start)


def measure(program: str, case: str, options: argparse.Namespace) -> dict[str, float]:
    """One run in a process of its own: images per second, and the peak of its memory in MB."""
    command = [sys.executable, "-m", "benchmarks.ddpm_speed", "--alone", program, case]
    command += [f"--steps={options.steps}", f"--batch-size={options.batch_size}", f"--threads={options.threads}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=CASES, nargs="+", default=["ddpm", "ldm"])
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        torch.set_num_threads(options.threads)
        program, case = options.alone
        training, sampling = (run_daguerre if program == "daguerre" else run_plain)(case, options.steps, options.batch_size)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(json.dumps({"training, images/s": training, "sampling, images/s": sampling, "memory, MB": memory}))
        return
    print("| | daguerre | diffusers, plain loop | ratio |\n| --- | --- | --- | --- |")
    for case in options.case:
        runs = [(measure("daguerre", case, options), measure("diffusers", case, options)) for _ in range(options.runs)]
        for name in runs[0][0]:
            ours, theirs = (statistics.median(run[side][name] for run in runs) for side in (0, 1))
            print(f"| {case}, {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} × |", flush=True)


if __name__ == "__main__":
    main()
