"""Speed on a machine where another program keeps the first core busy: numbers of threads, and how idle threads wait.

    python -m benchmarks.threads [--rounds 3] [--idle] [--out benchmarks/threads.md]

Every round runs each row once, each in its own process, so that changes of the machine affect all rows. Times are wall-clock medians.
Ratios are medians over the rounds of the speed relative to one thread in the same round. CPU seconds show how much of the time was waiting.
`--idle` leaves the first core free. Other programs that run meanwhile disturb the figures.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import daguerre
from benchmarks.processes import in_a_process, row
from daguerre.cpu_threads import SPIN_COUNT, use_free_cores
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.datasets.latents import CachedLatents
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.recipes.stages import trained_parts

IMAGES, SAMPLING_STEPS, TRAINING_STEPS = 3, 6, 8
ROWS: dict[str, dict[str, str]] = {  # environment variables; "" unsets one
    "one thread": {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": SPIN_COUNT},
    "as the commands choose": {"OMP_NUM_THREADS": "", "GOMP_SPINCOUNT": SPIN_COUNT},
    "all cores, idle threads sleep after 20 µs": {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": SPIN_COUNT},
    "all cores, idle threads sleep at once": {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": ""},
    "all cores, OpenMP's own waiting": {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""},
}


class TimedLatents(CachedLatents):
    """Batches that record when they are used: the clock and the CPU seconds of this process."""

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Any]:
        self.used: list[tuple[float, float]] = []
        for batch in super().stream(start, workers, processes=processes):
            self.used.append(now())
            yield batch


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure() -> dict[str, float]:
    """Seconds of an image and of a training step of the embedded model, by the clock and of the CPU."""
    threads = use_free_cores()
    model = daguerre.load()
    assert isinstance(model, LatentDiffusion)
    daguerre.generate(model, "a red apple", steps=1)
    times = [now()]
    for seed in range(IMAGES):
        daguerre.generate(model, "a red apple", steps=SAMPLING_STEPS, seed=seed)
        times.append(now())
    image, image_cpu = (statistics.median(b[i] - a[i] for a, b in pairwise(times)) for i in (0, 1))
    autoencoder, conditioner = trained_parts(model)
    size = model.sample_size // autoencoder.downsample_factor
    batches = TimedLatents(torch.randn(64, model.unet.config.in_channels, size, size), ["a red apple"] * 64, 2, 0)
    task = DiffusionTask(model, DiffusionLoss(), conditioner.encode_captions, ["a red apple"])
    loop = LoopConfig(max_train_steps=TRAINING_STEPS, batch_size=2, mixed_precision="auto", sample_every=0)
    with tempfile.TemporaryDirectory() as out:
        train(task, batches, loop, Path(out))
    used = batches.used[1:TRAINING_STEPS]  # without the first step and the checkpoint
    step, step_cpu = (statistics.median(b[i] - a[i] for a, b in pairwise(used)) for i in (0, 1))
    return {"threads": threads, "image": image, "image_cpu": image_cpu, "step": step, "step_cpu": step_cpu}


def run(name: str) -> dict[str, float]:
    environment = ROWS[name]
    for variable in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        os.environ.pop(variable, None)
    return in_a_process("benchmarks.threads", "--one", **{key: value for key, value in environment.items() if value})


def table(rounds: int) -> str:
    """The rows, each with the medians of its rounds."""
    found: list[dict[str, dict[str, float]]] = []
    for _ in range(rounds):
        found.append({name: run(name) for name in ROWS})
        print(json.dumps(found[-1]), file=sys.stderr)
    lines = [row(["", "threads", "image, s", "CPU s", "× one thread", "training step, s", "CPU s", "× one thread"]), row(["---"] * 8)]
    for name in ROWS:
        medians = {key: statistics.median(each[name][key] for each in found) for key in found[0][name]}
        ratios = {key: statistics.median(each["one thread"][key] / each[name][key] for each in found) for key in ("image", "step")}
        cells = [medians["image"], medians["image_cpu"], ratios["image"], medians["step"], medians["step_cpu"], ratios["step"]]
        lines.append(row([name, round(medians["threads"]), *cells]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", action="store_true", help="leave the first core free")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure()))
        return
    busy = None if options.idle else subprocess.Popen([sys.executable, "-c", "import os; os.sched_setaffinity(0, {0})\nwhile True: pass"])
    try:
        text = table(options.rounds)
    finally:
        if busy is not None:
            busy.kill()
    cores = f"{os.cpu_count()} cores, {'all free' if options.idle else 'the first one busy'}"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    command = f"python -m benchmarks.threads{' --idle' if options.idle else ''}"
    text = f"`{command}`, medians of {options.rounds} rounds; {cores}; {versions}.\n\n{text}\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
