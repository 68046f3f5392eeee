"""A rank-32 LoRA on a model of Stable Diffusion 1.5's size with random weights: the time to attach it, and what a run with it costs.

    OMP_NUM_THREADS=1 python -m benchmarks.adapters [--dtype float32] [--side 256] [--steps 2] [--repeats 5] [--tiny]

Attaching is reading the file, hashing it and changing the weights, measured several times; the table has the median and the range. A run
is text to image with guidance. Runs with and without the LoRA alternate, and each pair gives one ratio of CPU times.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.processes import row
from benchmarks.random_models import sd15
from daguerre.adapters import load_lora, with_adapters
from daguerre.adapters.attach import adapted_networks
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import generate

RANK = 32
PREFIXES = {"unet": "lora_unet", "te1": "lora_te"}
ATTENTION_LAYERS = (".to_q", ".to_k", ".to_v", ".to_out.0", ".proj", ".net.2", "proj_in", "proj_out", "_proj", ".fc1", ".fc2")


def kohya_lora(model: LatentDiffusion, rank: int = RANK) -> dict[str, Tensor]:
    """A random LoRA on every attention and feed-forward layer, as kohya's scripts train it by default, in float16."""
    tensors, generator = {}, torch.Generator().manual_seed(0)
    for role, network in adapted_networks(model).items():
        for path, layer in network.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not path.endswith(ATTENTION_LAYERS):
                continue
            name = f"{PREFIXES[role]}_{path.replace('.', '_')}"
            kernel = (1, 1) if isinstance(layer, nn.Conv2d) else ()
            down = torch.randn(rank, layer.weight.shape[1], *kernel, generator=generator) / layer.weight.shape[1] ** 0.5
            up = torch.randn(len(layer.weight), rank, *kernel, generator=generator) * 1e-3
            tensors |= {f"{name}.lora_down.weight": down.half(), f"{name}.lora_up.weight": up.half()}
            tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    return tensors


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def attaching(model: LatentDiffusion, path: Path, repeats: int) -> dict[str, list[float]]:
    """Wall-clock seconds of reading and of attaching; both together have to stay below the limit."""
    times: dict[str, list[float]] = {"read": [], "attach": [], "both": []}
    for _ in range(repeats):
        start = time.perf_counter()
        lora = load_lora(path)
        middle = time.perf_counter()
        with_adapters(model, [lora])
        end = time.perf_counter()
        for name, seconds in (("read", middle - start), ("attach", end - middle), ("both", end - start)):
            times[name].append(seconds)
    return times


def run_pairs(model: LatentDiffusion, styled: LatentDiffusion, side: int, steps: int, repeats: int) -> list[float]:
    """The CPU time of a run with the LoRA relative to one without, for each pair."""

    def run(each: LatentDiffusion) -> float:
        return timed(lambda: generate(each, "a red apple", steps=steps, width=side, height=side), time.process_time)

    run(model), run(styled)  # warm up
    ratios = []
    for i in range(repeats):
        first, second = (model, styled) if i % 2 == 0 else (styled, model)
        seconds = {id(first): run(first), id(second): run(second)}
        ratios.append(seconds[id(styled)] / seconds[id(model)])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a model with few channels, for trying the benchmark itself")
    options = parser.parse_args()
    model = sd15(getattr(torch, options.dtype), tiny=options.tiny)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ink.safetensors"
        save_file(kohya_lora(model), path)
        megabytes = path.stat().st_size / 1e6
        times = attaching(model, path, options.repeats)
        ratios = run_pairs(model, with_adapters(model, [load_lora(path)]), options.side, options.steps, options.repeats)
    print(f"A LoRA of rank {RANK} ({megabytes:.0f} MB) on {model.name} in {options.dtype}, {torch.get_num_threads()} threads.\n")
    print(row(["", "median", "lowest", "highest"]))
    print("|---|---|---|---|")
    for name, seconds in times.items():
        print(row([f"{name}, s", statistics.median(seconds), min(seconds), max(seconds)]))
    print(row(["CPU time of a run with / without", statistics.median(ratios), min(ratios), max(ratios)]))


if __name__ == "__main__":
    main()
