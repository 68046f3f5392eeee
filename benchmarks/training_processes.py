"""Training in one process with all threads against one process for each core, and the time that checkpoints take.

    python -m benchmarks.training_processes [--processes 2] [--steps 40] [--runs 3] [--tiny] [--out benchmarks/training_processes.md]

Both train the same `ddpm` on rendered shapes with the same batches; speed is that of the steps after the first ten, in the log of the run.
The runs alternate; figures are medians. A checkpoint's stall is the time inside its save, as a share of 500 steps.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory

import torch

from benchmarks.processes import row
from daguerre.training.distributed import parallel
from daguerre.training.options.ddpm import DDPMRecipe, UNetShape
from daguerre.training.recipes.ddpm import run as train_ddpm

WARM_UP, INTERVAL = 10, 500


def speed(launcher: Sequence[str], options: Sequence[object], steps: int) -> float:
    """Images per second."""
    with TemporaryDirectory() as out:
        loop = "--max-train-steps", WARM_UP + steps, "--log-every", WARM_UP, "--sample-every", 0, "--checkpoint-every", 10**6, "--out", out
        command = [sys.executable, *launcher, "-m", "daguerre", "train", "ddpm", "--data", "shapes", *map(str, (*options, *loop))]
        done = run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    batch = int(str(options[options.index("--batch-size") + 1]))
    return batch * (lines[-1]["step"] - lines[0]["step"]) / (lines[-1]["seconds"] - lines[0]["seconds"])


def stall(recipe: DDPMRecipe) -> tuple[float, float]:
    """Seconds of a step and of a checkpoint."""
    save, taken = parallel.save_checkpoint, []

    def timed(*arguments: object) -> object:
        started = time.perf_counter()
        saved = save(*arguments)  # type: ignore[arg-type]
        taken.append(time.perf_counter() - started)
        return saved

    parallel.save_checkpoint = timed
    train_ddpm(recipe)
    lines = [json.loads(line) for line in (recipe.out / "log.jsonl").read_text().splitlines()]
    whole = lines[-1]["seconds"] - lines[0]["seconds"] - sum(taken[1:])
    return whole / (lines[-1]["step"] - lines[0]["step"]), statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/training_processes.md"))
    options = parser.parse_args()
    shape = ["--channels", 32, "--attention-levels", 0] if options.tiny else []
    common = ["--batch-size", options.batch_size, *shape]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}"]
    kinds = {
        f"one process, {options.processes} threads": ([], [*common, "--threads", options.processes]),
        f"{options.processes} processes, one thread each": (torchrun, [*common, "--threads", 1]),
    }
    found = {name: [] for name in kinds}
    for _ in range(options.runs):
        for name, (launcher, arguments) in kinds.items():
            found[name].append(speed(launcher, arguments, options.steps))
    (one, several), names = [statistics.median(each) for each in found.values()], list(kinds)
    with TemporaryDirectory() as out:
        recipe = DDPMRecipe("shapes", Path(out), shape=UNetShape((32,), 1, (0,)) if options.tiny else UNetShape())
        settings = {"max_train_steps": 30, "batch_size": options.batch_size, "sample_every": 0, "checkpoint_every": 10, "log_every": 10}
        step, checkpoint = stall(replace(recipe, loop=replace(recipe.loop, **settings)))
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        "# Training in several processes",
        "",
        f"`python -m benchmarks.training_processes`: `daguerre train ddpm` on shapes, batches of {options.batch_size}, {where}.",
        "",
        row(("", "images/s", "× the first", "aim")),
        row(("---",) * 4),
        row((names[0], one, 1.0, "")),
        row((names[1], several, several / one, "≥ 0.9")),
        "",
        f"A checkpoint takes {checkpoint:.3g} s and a step {step:.3g} s: {checkpoint / (checkpoint + INTERVAL * step):.2%} of the time at "
        f"an interval of {INTERVAL} steps (aim ≤ 2 %).",
    ]
    print("\n".join(lines))
    if not options.tiny:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
