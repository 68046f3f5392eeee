"""int8 on the embedded model: torch's dynamic quantisation of linear layers against float32, PSNR and time.

    python -m benchmarks.int8 [--steps 20] [--out benchmarks/int8.md]

Kept is what gives 1.5 times the speed at 35 dB or more.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.processes import row
from daguerre.data.images import to_tensor
from daguerre.metrics import psnr
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import generate
from daguerre.runtime.weight_edits import with_edited_weights
from daguerre.weights import load_diffusion

PROMPTS = "a red apple", "a blue cat", "a pizza to the left of a tree", "a smiling face on a yellow background"
AIM = "1.5 times the speed at 35 dB"


def dynamic(model: LatentDiffusion) -> LatentDiffusion:
    """The model with int8 weights and activations in the linear layers of its UNet."""
    unet = with_edited_weights(model.unet, {})
    quantised = torch.ao.quantization.quantize_dynamic(unet, {nn.Linear}, dtype=torch.qint8)
    return replace(model, unet=quantised)


def sampled(model: LatentDiffusion, steps: int) -> tuple[list[torch.Tensor], float]:
    """The images (1, 3, H, W) of the prompts and the median of the processor seconds that each took."""
    images, seconds = [], []
    for prompt in PROMPTS:
        start = time.process_time()
        images.append(to_tensor(generate(model, prompt, steps=steps)[0].image)[None])
        seconds.append(time.process_time() - start)
    return images, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/int8.md"))
    options = parser.parse_args()
    model = load_diffusion(None, dtype=torch.float32)
    truth, base = sampled(model, options.steps)
    images, seconds = sampled(dynamic(model), options.steps)
    value = statistics.mean(psnr(x, y).item() for x, y in zip(truth, images, strict=True))
    heads = "UNet", "PSNR to float32, dB", "s per image", "speed"
    lines = [
        "# int8",
        "",
        f"`python -m benchmarks.int8 --steps {options.steps}`: the embedded model, {len(PROMPTS)} prompts, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}. The aim is {AIM}.",
        "",
        row(heads),
        row("---" for _ in heads),
        row(("float32", "", base, "")),
        row(("torch, dynamic, linear layers", value, seconds, f"{base / seconds:.2f} ×")),
    ]
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
