"""Stable Diffusion 1.5's size on a GPU: the engines torch and compile against diffusers, eager and compiled, in one table.

    python -m benchmarks.gpu [--device cuda] [--steps 20] [--tiny] [--out benchmarks/gpu.md]

Random weights in float16, DPM++ 2M, guidance scale 7.5. A row is one engine: the seconds until the first image, which include compilation,
the median of three more images of 512×512, one UNet call (batch 2), and the peak memory, on a CPU of the whole process. Every row is a
process of its own, which is ended after `--limit` seconds; only the compiled rows need more than half a minute, so all four take less than
eight. `--tiny` checks the script on any machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import peak, row
from benchmarks.random_models import sd15
from daguerre.diffusion import Conditioning

ROWS = ("torch", "compile", "diffusers", "diffusers compiled")
HEADS = "engine", "first image, s", "next image, s", "UNet call, ms", "peak memory, GB"
PROMPT, GUIDANCE = "a lighthouse at dawn", 7.5
Functions = tuple[Callable[[], object], Callable[[], object]]  # generate an image; call the UNet once
REPEATS, CALLS = 3, 10
SIZES = {False: 512, True: 64}  # pixels per side


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def ours(name: str, device: torch.device, dtype: torch.dtype, steps: int, tiny: bool) -> Functions:
    from daguerre.pipelines import Request, generate
    from daguerre.runtime.engines import engine_by_name, engine_of

    model = engine_by_name(name, device)(sd15(dtype, tiny=tiny).to(device))
    for network in (model.unet, model.autoencoder):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]  # as `load` does
    size = SIZES[tiny]
    side = size // model.autoencoder.downsample_factor
    x = torch.randn(2, 4, side, side, device=device, dtype=dtype)
    cond = Conditioning(context=torch.randn(2, 77, model.unet.config.context_width or 0, device=device, dtype=dtype))
    network = engine_of(model).prepare(model.unet)
    t = torch.full((2,), 500.0, device=device)
    request = Request(PROMPT, steps=steps, sampler="dpmpp_2m", guidance_scale=GUIDANCE, width=size, height=size)
    return lambda: generate(model, request), lambda: network(x, t, cond)


def theirs(compiled: bool, device: torch.device, dtype: torch.dtype, steps: int, tiny: bool) -> Functions:
    """Compiled as the guide of diffusers recommends: the whole UNet, channels last."""
    import tempfile

    import diffusers

    import daguerre

    library: Any = diffusers
    with tempfile.TemporaryDirectory() as folder:
        daguerre.save(sd15(dtype, tiny=tiny), Path(folder) / "model")
        pipe = library.StableDiffusionPipeline.from_pretrained(Path(folder) / "model", torch_dtype=dtype).to(device)
    pipe.scheduler = library.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.unet = torch.compile(pipe.unet)
    size, config = SIZES[tiny], pipe.unet.config
    side = size // 8
    x = torch.randn(2, 4, side, side, device=device, dtype=dtype)
    context = torch.randn(2, 77, config.cross_attention_dim, device=device, dtype=dtype)
    settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "width": size, "height": size}
    return lambda: pipe(PROMPT, **settings), lambda: pipe.unet(x, 500, context)


@torch.no_grad()
def measured(name: str, device: torch.device, steps: int, tiny: bool) -> list[float]:
    """The cells of a row."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    if name.startswith("diffusers"):
        image, call = theirs(name.endswith("compiled"), device, dtype, steps, tiny)
    else:
        image, call = ours(name, device, dtype, steps, tiny)
    first = seconds(image, device)
    later = statistics.median(seconds(image, device) for _ in range(REPEATS))
    call()
    one = statistics.median(seconds(call, device) for _ in range(CALLS))
    return [first, later, 1000 * one, torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=150)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gpu.md"))
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.one:
        print(json.dumps(measured(options.one, device, options.steps, options.tiny)))
        return
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, to check the script"
    about = f"`python -m benchmarks.gpu --device {options.device} --steps {options.steps}{' --tiny' * options.tiny}`"
    lines = ["# On a GPU", "", f"{about}; {machine}, torch {torch.__version__}.", "", row(HEADS), row("---" for _ in HEADS)]
    for name in options.rows:
        arguments = ["--one", name, "--device", options.device, "--steps", str(options.steps), *["--tiny"] * options.tiny]
        try:
            command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
            failed = None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
        except subprocess.TimeoutExpired:
            done, failed = None, f"more than {options.limit:g} s"
        cells = [failed or "", "", "", ""] if done is None or failed else json.loads(done.stdout.splitlines()[-1])
        lines.append(row((name, *cells)))
        print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
