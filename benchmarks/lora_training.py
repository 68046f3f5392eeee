"""Memory and speed of training a rank-8 LoRA at the size of Stable Diffusion 1.5, compared with diffusers and peft.

    python -m benchmarks.lora_training [--dtype bfloat16] [--steps 6] [--runs 3] [--tiny] [--work runs/lora-training]

Random weights, 512×512 pixels, batch size 1, gradient checkpointing, AdamW, the q, k, v and output projections of all attention layers. In
bfloat16 the base has this precision and autocast is on; the LoRA itself is always float32. Both sides get the same latents and text states
in memory, and each run has its own process, in turn. The peak is the resident memory of the process; steps per second are wall-clock,
without the first step. The goals are at most 6 GB and 0.8 of their memory, and at least their speed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.processes import in_a_process, noise, peak, row
from benchmarks.random_models import sd15
from daguerre.conditioning import Conditioner
from daguerre.conditioning.prompt import PromptLine
from daguerre.data import Batch
from daguerre.diffusion import Conditioning, Schedule, ScheduleConfig
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.loop import train
from daguerre.training.objectives.adapters.lora import LoraNetwork, LoraTask, new_layers
from daguerre.training.options.adapters.lora import LoraOptions
from daguerre.weights import save
from daguerre.weights.diffusers.load import load_unet

RANK, TIMESTEPS, SIDE, TOKENS = 8, 1000, 64, 77
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
OURS, THEIRS = "daguerre", "diffusers + peft"


class CachedText(Conditioner):
    """Text states (1, L, D) in memory, the same for every caption."""

    def __init__(self, context: Tensor) -> None:
        super().__init__()
        self.context = context

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        return Conditioning(self.context.expand(len(lines), -1, -1))


class TimedBatches:
    """A batch of latents without end, and the time at which each step asked for it."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents
        self.asked: list[float] = []

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Batch]:
        while True:
            self.asked.append(time.perf_counter())
            yield Batch(self.latents, ["a caption"], latent=True)


def daguerre_side(folder: Path, latents: Tensor, context: Tensor, steps: int, dtype: torch.dtype) -> float:
    """Seconds per step of the training loop."""
    unet = load_unet(folder / "unet", device="cpu", dtype=dtype)[0]
    model = LatentDiffusion(unet, IdentityAutoencoder(), CachedText(context), Schedule(ScheduleConfig()), "epsilon", "random")
    options = LoraOptions(RANK, modules=rf"attn\d\.({'|'.join(TARGETS)})", base_dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    network, batches = LoraNetwork(model, new_layers(model, options)), TimedBatches(latents)
    task = LoraTask(network, DiffusionLoss(caption_dropout=0), options, ())
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    loop = LoopConfig(max_train_steps=steps, batch_size=1, ema_decay=0, mixed_precision=precision, sample_every=0, checkpoint_every=10**6)
    with TemporaryDirectory() as out, network.attached(), checkpointed(unet):
        train(task, batches, loop, Path(out))
    ended = batches.asked[1:steps]
    return (ended[-1] - ended[0]) / (len(ended) - 1)


def diffusers_side(folder: Path, latents: Tensor, context: Tensor, steps: int, dtype: torch.dtype) -> float:
    """Seconds per step of the loop of diffusers' examples/text_to_image/train_text_to_image_lora.py, without logs and checkpoints."""
    import diffusers
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(TARGETS)))
    cast_training_params(unet, torch.float32)
    unet.enable_gradient_checkpointing()
    unet.train()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer, scheduler = torch.optim.AdamW(trained, lr=1e-4), diffusers.DDPMScheduler()
    started = []
    for _ in range(steps):
        started.append(time.perf_counter())
        eps, t = torch.randn_like(latents), torch.randint(TIMESTEPS, (len(latents),))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            predicted = unet(scheduler.add_noise(latents, eps, t).to(dtype), t, encoder_hidden_states=context).sample
        torch.nn.functional.mse_loss(predicted.float(), eps).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    ended = started[1:]
    return (ended[-1] - ended[0]) / (len(ended) - 1)


SIDES: dict[str, Callable[[Path, Tensor, Tensor, int, torch.dtype], float]] = {OURS: daguerre_side, THEIRS: diffusers_side}


def measure(who: str, folder: Path, steps: int, dtype: torch.dtype, tiny: bool) -> dict[str, float]:
    """The peak memory in GB and the seconds per step of one side, in this process."""
    latents = noise(1, 4, SIDE // 8 if tiny else SIDE, SIDE // 8 if tiny else SIDE)
    context = noise(1, TOKENS, 64 if tiny else 768, dtype=dtype, seed=1)
    seconds = SIDES[who](folder, latents, context, steps, dtype)
    return {"peak": peak(), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the base")
    parser.add_argument("--steps", type=int, default=6, help="of each run; at least 4")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small network, for trying the benchmark itself")
    parser.add_argument("--work", type=Path, default=Path("runs/lora-training"))
    parser.add_argument("--one", choices=SIDES, help="measure one side in this process")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    folder = options.work / f"{'tiny' if options.tiny else 'sd15'}-{options.dtype}"
    if options.one:
        print(json.dumps(measure(options.one, folder, options.steps, dtype, options.tiny)))
        return
    if not folder.is_dir():
        save(sd15(dtype, tiny=options.tiny), folder)
    flags = ["--work", options.work, "--dtype", options.dtype, "--steps", options.steps, *(["--tiny"] if options.tiny else [])]
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in SIDES}
    for _ in range(options.runs):
        for who in SIDES:
            found[who].append(in_a_process("benchmarks.lora_training", "--one", who, *flags))
    memory, seconds = ({who: statistics.median(run[key] for run in runs) for who, runs in found.items()} for key in ("peak", "seconds"))
    print(row(["", OURS, THEIRS, "ratio"]), row(["---"] * 4), sep="\n")
    print(row(["peak resident memory, GB", memory[OURS], memory[THEIRS], memory[OURS] / memory[THEIRS]]))
    print(row(["steps/s", 1 / seconds[OURS], 1 / seconds[THEIRS], seconds[THEIRS] / seconds[OURS]]))


if __name__ == "__main__":
    main()
