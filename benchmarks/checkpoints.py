"""A checkpoint of Stable Diffusion 1.5's size, side by side with diffusers: opening, one call of the UNet, decoding; time and peak memory.

    python -m benchmarks.random_models FOLDER
    python -m benchmarks.checkpoints FOLDER [--rows unet-bfloat16 vae512-bfloat16 …] [--rounds 3] [--out benchmarks/checkpoints.md]

Every figure is of a process of its own, imports left out of the time and counted in the memory; the two programs take turns and medians
are taken. Times are processor time, which other programs disturb least; set OMP_NUM_THREADS=1, as waiting threads count.
"Opening" ends with the first answer of the UNet (batch 2, 64×64 latents); "one call" is the next one.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import in_a_process, noise, peak, row

WHO = "daguerre", "diffusers"
ROWS = [f"{what}-{dtype}" for dtype in ("bfloat16", "float32") for what in ("unet", "vae512", "vae1024")]
AIMS = {"open": ("≤ 0.6 ×", "≤ 0.7 ×"), "unet": ("≤ 0.87 ×", ""), "vae": ("≤ 0.87 ×", "≤ 0.6 ×")}
Call = Callable[[], Tensor]


def unet(who: str, folder: Path, dtype: torch.dtype) -> Iterator[Call]:
    """Yields nothing until imports are done, then what opens the network and calls it."""
    x, context, t = noise(2, 4, 64, 64, dtype=dtype), noise(2, 77, 768, dtype=dtype), torch.full((2,), 500)
    if who == "daguerre":
        from daguerre.diffusion import Conditioning
        from daguerre.weights import load

        yield lambda: torch.empty(0)
        model = load(folder, dtype=dtype)
        yield lambda: model.unet(x, t, Conditioning(context=context))
    else:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        yield lambda: torch.empty(0)
        pipe: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
        yield lambda: pipe.unet(x, t, context).sample


def vae(who: str, folder: Path, dtype: torch.dtype, side: int) -> Iterator[Call]:
    z = noise(1, 4, side // 8, side // 8, dtype=dtype)
    if who == "daguerre":
        from daguerre.weights import load_vae

        yield lambda: torch.empty(0)
        autoencoder = load_vae(folder, dtype=dtype)
        yield lambda: autoencoder.decode(z)
    else:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        yield lambda: torch.empty(0)
        theirs: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        yield lambda: theirs.decode(z / theirs.config.scaling_factor).sample


@torch.no_grad()
def measured(who: str, what: str, folder: Path) -> dict[str, float]:
    """Seconds of processor time of opening with the first call and of the next call, and the peak of resident memory in GB."""
    what, name = what.split("-")
    dtype = getattr(torch, name)
    calls = unet(who, folder, dtype) if what == "unet" else vae(who, folder, dtype, int(what.removeprefix("vae")))
    next(calls)
    start = time.process_time()
    call = next(calls)
    if what == "unet":  # else the decoder's first call is as long as any other
        call()
    first = time.process_time()
    call()
    return {"open": first - start, "call": time.process_time() - first, "peak": peak()}


def compared(what: str, folder: Path, rounds: int) -> list[tuple[str, float, float, str]]:
    """The table's rows of one network in one dtype: what, ours, theirs, aim."""
    found: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
    for _ in range(rounds):
        for who in WHO:
            found[who].append(in_a_process("benchmarks.checkpoints", folder, "--one", who, what))
    ours, theirs = ({key: statistics.median(each[key] for each in found[who]) for key in found[who][0]} for who in WHO)
    what, dtype = what.split("-")
    if what == "unet":
        return [
            (f"open the folder, through the first UNet call, {dtype}, s", ours["open"], theirs["open"], AIMS["open"][0]),
            (f"the same, peak memory, {dtype}, GB", ours["peak"], theirs["peak"], AIMS["open"][1]),
            (f"one UNet call, batch 2, 64×64, {dtype}, s", ours["call"], theirs["call"], AIMS["unet"][0]),
        ]
    side = what.removeprefix("vae")
    return [
        (f"decode {side}×{side}, {dtype}, s", ours["call"], theirs["call"], AIMS["vae"][0]),
        (f"the same with opening, peak memory, {dtype}, GB", ours["peak"], theirs["peak"], AIMS["vae"][1]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/checkpoints.md"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], options.one[1], options.folder)))
        return
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    command = f"`python -m benchmarks.checkpoints FOLDER --rows {' '.join(options.rows)} --rounds {options.rounds}`, medians; {where}."
    heads = "what", "daguerre", "diffusers", "ratio", "aim"
    lines = ["# A checkpoint of Stable Diffusion 1.5's size, measured", "", command, "", row(heads), row("---" for _ in heads)]
    for each in options.rows:
        for what, ours, theirs, aim in compared(each, options.folder, options.rounds):
            lines.append(row((what, ours, theirs, f"{ours / theirs:.2f}", aim)))
            print(lines[-1], flush=True)
        options.out.write_text("\n".join(lines) + "\n")  # what is known so far


if __name__ == "__main__":
    main()
