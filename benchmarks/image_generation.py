"""Generating images with a checkpoint of Stable Diffusion 1.5's size, compared with diffusers: time per step, fixed time and memory.

    python -m benchmarks.random_models FOLDER
    python -m benchmarks.image_generation FOLDER [--dtypes bfloat16 float32] [--side 512] [--out benchmarks/image_generation.md]

DPM++ 2M, guidance scale 7.5. Each figure comes from a separate process that generates, after a warm-up, an image in 2 steps and one in 4
steps. The time per step is half the difference; the rest of the first time is fixed (text encoding, decoding, encoding for img2img, but not
loading; Daguerre reloads offloaded parts for every image). "20 steps" is fixed + 20 steps, computed. "Defaults" is Daguerre with 20 steps
in bfloat16 and diffusers with 50 in float32. img2img has strength 0.5 and twice the steps. Times are CPU time; set OMP_NUM_THREADS=1. The
batch is four prompts at once and one after the other with the embedded model.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.processes import in_a_process, peak, row

WHO, TASKS = ("daguerre", "diffusers"), ("txt2img", "img2img")
PROMPTS = ("a red apple", "a blue apple", "a cat face", "a pizza")
PROMPT, GUIDANCE, FEW, MORE = PROMPTS[0], 7.5, 2, 4
Generate = Callable[[int], object]  # generates an image in a number of steps


def daguerre_pipeline(task: str, folder: Path, dtype: torch.dtype, given: Image.Image) -> Generate:
    from daguerre.pipelines import generate
    from daguerre.pipelines.images.input import InputImage
    from daguerre.pipelines.tasks import ImageToImage, TextToImage
    from daguerre.weights import load_diffusion

    model = load_diffusion(folder, dtype=dtype, offload=True)
    what, times = (TextToImage(), 1) if task == "txt2img" else (ImageToImage(InputImage.from_any(given), strength=0.5), 2)
    request = {
        "prompt": PROMPT,
        "guidance_scale": GUIDANCE,
        "sampler": "dpmpp_2m",
        "width": given.width,
        "height": given.height,
        "task": what,
    }
    return lambda steps: generate(model, steps=times * steps, **request)


def diffusers_pipeline(task: str, folder: Path, dtype: torch.dtype, given: Image.Image) -> Generate:
    import diffusers

    library: Any = diffusers
    kind = library.StableDiffusionPipeline if task == "txt2img" else library.StableDiffusionImg2ImgPipeline
    pipe = kind.from_pretrained(folder, torch_dtype=dtype)
    pipe.scheduler = library.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    more = {"width": given.width, "height": given.height} if task == "txt2img" else {"image": given, "strength": 0.5}
    times = 1 if task == "txt2img" else 2
    return lambda steps: pipe(PROMPT, num_inference_steps=times * steps, guidance_scale=GUIDANCE, **more)


def measured(who: str, task: str, folder: Path, dtype: torch.dtype, side: int) -> dict[str, float]:
    """Seconds per step, fixed seconds, and peak memory in GB including loading."""
    run = (daguerre_pipeline if who == "daguerre" else diffusers_pipeline)(
        task, folder, dtype, Image.new("RGB", (side, side), (90, 120, 150))
    )
    seconds = []
    for steps in (FEW, FEW, MORE):  # the first warms up
        start = time.process_time()
        run(steps)
        seconds.append(time.process_time() - start)
    _, few, more = seconds
    step = (more - few) / (MORE - FEW)
    return {"step": step, "fixed": few - FEW * step, "peak": peak()}


def batch(runs: int) -> tuple[float, float]:
    """Median seconds of four prompts at once and one after the other with the embedded model."""
    import daguerre

    model, seconds = daguerre.load(), ([], [])
    for run in range(runs + 1):
        for times, groups in zip(seconds, ([PROMPTS], PROMPTS), strict=True):
            start = time.process_time()
            for prompt in groups:
                daguerre.generate(model, prompt=prompt)
            if run:  # the first warms up
                times.append(time.process_time() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def compared(task: str, folder: Path, dtypes: list[str], side: int) -> list[tuple[object, ...]]:
    found = {
        (who, dtype): in_a_process("benchmarks.image_generation", folder, "--side", side, "--one", who, task, dtype)
        for dtype in dtypes
        for who in WHO
    }
    rows = []

    def add(what: str, a: float, b: float, aim: str = "") -> None:
        rows.append((f"{task} {side}×{side}, {what}", a, b, f"{a / b:.2f}", aim))

    def whole(who: str, dtype: str, steps: int) -> float:
        return found[who, dtype]["fixed"] + steps * found[who, dtype]["step"]

    for dtype in dtypes:
        a, b = (found[who, dtype] for who in WHO)
        add(f"per step, {dtype}, s", a["step"], b["step"])
        add(f"fixed, {dtype}, s", a["fixed"], b["fixed"])
        add(f"20 steps, {dtype}, s, computed", whole(WHO[0], dtype, 20), whole(WHO[1], dtype, 20), "≤ 0.83 ×")
        add(f"peak memory, {dtype}, GB", a["peak"], b["peak"], "≤ 0.7 ×")
    if {"bfloat16", "float32"} <= set(dtypes):
        add("defaults, s, computed", whole(WHO[0], "bfloat16", 20), whole(WHO[1], "float32", 50), "≤ 0.5 ×")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtypes", nargs="*", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3, help="of the batch")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/image_generation.md"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        who, task, dtype = options.one
        print(json.dumps(measured(who, task, options.folder, getattr(torch, dtype), options.side)))
        return
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    heads = "what", "daguerre", "diffusers", "ratio", "aim"
    about = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = ["# Generating images", "", about, "", f"{where}.", "", row(heads), row("---" for _ in heads)]
    for task in TASKS:
        lines += [row(cells) for cells in compared(task, options.folder, options.dtypes, options.side)]
    at_once, singly = batch(options.runs)
    lines += [
        "",
        f"Four prompts, embedded model: {at_once:.3g} s at once, {singly:.3g} s one by one, {singly / at_once:.2f} × (aim ≥ 1.3 ×).",
    ]
    print("\n".join(lines))
    options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
