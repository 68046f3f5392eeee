"""The cost of recording attention: the same work with and without it, alternating; medians of CPU seconds.

    python -m benchmarks.attention_cost [--runs 5] [--large]

The embedded model generates one image in 20 steps. `--large` measures one guided call of a UNet of Stable Diffusion 1's size with random
weights in bfloat16 on 32×32 latents, which needs about 3 GB of memory.
"""

import argparse
import time
from collections.abc import Callable

import torch

import daguerre
from benchmarks.embedded_model import timed
from daguerre.diffusion import Conditioning, Denoiser, Schedule, ScheduleConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import SD1, UNet
from daguerre.nn.attention_hooks import capture_cross_attention
from daguerre.pipelines import generate
from daguerre.pipelines.attention_maps import record_attention


def embedded() -> list[Callable[[], object]]:
    """Generate an image without and with recording."""
    model = daguerre.load()
    assert isinstance(model, LatentDiffusion)

    def generate_image() -> None:
        generate(model, prompt="a cat and a pizza")

    def generate_recorded() -> None:
        with record_attention(model):
            generate_image()

    return [generate_image, generate_recorded]


def large() -> list[Callable[[], object]]:
    """A guided call without and with attention maps of the prompt's half of the batch."""
    with torch.device("meta"):
        unet = UNet(SD1)
    unet = unet.to_empty(device="cpu").to(torch.bfloat16).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    cond, x = Conditioning(torch.randn(2, 77, 768, dtype=torch.bfloat16)), torch.randn(2, 4, 32, 32)
    denoiser = Denoiser(unet, Schedule(ScheduleConfig()), "epsilon", torch.bfloat16)

    @torch.no_grad()
    def call() -> None:
        denoiser(x, torch.tensor(3.0), cond)

    def record(_size: tuple[int, int], q: torch.Tensor, k: torch.Tensor) -> None:
        q, k = q[:1], k[:1]
        (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=torch.float32).mean(1)

    def call_recorded() -> None:
        with capture_cross_attention(unet, record):
            call()

    return [call, call_recorded]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    plain, recorded = timed(*(large() if options.large else embedded()), runs=options.runs, clock=time.process_time)
    print(f"{plain:.3f} s plain, {recorded:.3f} s recorded: {recorded / plain - 1:+.1%}")


if __name__ == "__main__":
    main()
