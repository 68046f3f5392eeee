"""From a prompt to an image with the embedded model: every engine, with all steps and with --fast, with its decoder and with the tiny one.

    python -m benchmarks.engines [--lora runs/lcm/lcm.safetensors] [--dtype float32] [--runs 5] [--steps 20] [--out benchmarks/engines.md]

Each row is a median of wall-clock seconds over `--runs` runs after a warm-up, which compiles; the rows alternate. PSNR is to the first row.
`--lora` adds rows with a few-step file and its preset. An engine that is not installed, or lacks its compiler, is left out. `--tiny`
checks the script.
"""

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.embedded_model import timed
from benchmarks.processes import row
from daguerre.adapters import load_lora, with_adapters
from daguerre.adapters.presets import STEP_PRESETS
from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError
from daguerre.metrics import psnr
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.tiny_autoencoder import TinyAutoencoder, TinyDecoder
from daguerre.pipelines import Request, generate
from daguerre.runtime.engines import ENGINE_NAMES, engine_by_name
from daguerre.weights import load_diffusion

PROMPT = "a red apple"
HEADS = "engine", "steps", "decoder", "s", "× the first", "PSNR, dB"
Case = tuple[tuple[str, str, str], LatentDiffusion, Request]  # the first three cells, and what to generate


def engines(model: LatentDiffusion, names: list[str]) -> Iterator[tuple[str, LatentDiffusion]]:
    """The model with each engine that is here."""
    for name in names:
        try:
            yield name, engine_by_name(name, model.device)(model)
        except DaguerreError as error:
            print(f"left out: {error}", flush=True)


def cases(model: LatentDiffusion, names: list[str], steps: int, size: int, lora: Path | None) -> Iterator[Case]:
    plain = Request(PROMPT, steps=steps, width=size, height=size)
    few = STEP_PRESETS["lcm"]
    runs = {f"{steps}": (model, plain), f"{steps}, --fast": (model, replace(plain, fast=True))}
    if lora is not None:
        runs[f"{few.steps}, LCM"] = (with_adapters(model, [load_lora(lora)]), replace(plain, **few.fields))
    decoder = model.preview_decoder
    assert isinstance(decoder, TinyDecoder)
    for what, (changed, request) in runs.items():
        for name, engine in engines(changed, names):
            yield (name, what, "own"), engine, request
            yield (name, what, "tiny"), replace(engine, autoencoder=TinyAutoencoder(decoder, model.autoencoder)), request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINE_NAMES, default=list(ENGINE_NAMES))
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/engines.md"))
    options = parser.parse_args()
    runs, steps, size = (1, 10, 32) if options.tiny else (options.runs, options.steps, None)
    model = load_diffusion(None, dtype=getattr(torch, options.dtype))
    found = list(cases(model, options.engines, steps, size or model.sample_size, options.lora))
    tasks: list[Callable[[], object]] = [partial(generate, changed, request) for _, changed, request in found]
    images = [to_tensor(generate(changed, request)[0].image)[None] for _, changed, request in found]
    seconds = timed(*tasks, runs=runs)
    where = f"{torch.get_num_threads()} threads, {options.dtype}, torch {torch.__version__}, Python {platform.python_version()}"
    lines = ["# Engines", "", f"`python -m benchmarks.engines`: the embedded model, {PROMPT!r}, {where}.", "", row(HEADS)]
    lines.append(row("---" for _ in HEADS))
    for (names, _, _), each, image in zip(found, seconds, images, strict=True):
        value = "" if image is images[0] else psnr(images[0], image).item()
        lines.append(row((*names, each, f"{each / seconds[0]:.2f}", value)))
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
