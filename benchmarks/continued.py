"""What `daguerre train text-to-image` teaches: the embedded model before and after, on a folder of drawn shapes, which are no emoji.

    python -m benchmarks.continued [--pictures 500] [--steps 400] [--count 40] [--judge benchmarks/judge] [--work runs/continued]

A folder of `--pictures` drawn shapes with captions is written, in which some colours, backgrounds and numbers of each shape are held out,
and the UNet learns on with it. Before and after, the prompt of each new picture is ranked among 100: `--count` prompts of each kind of what
the folder shows and of what it holds out, by a judge that measures shapes; and plain names of emoji, by the judge of the embedded model,
which tell what was forgotten.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from daguerre.data import EmojiSource, ShapesSource, Trial, known_trials, shape_trials
from daguerre.metrics import Interval
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request
from daguerre.training.evaluate import AnyJudge, evaluate, sample, true_renders
from daguerre.training.judge import load_judge
from daguerre.training.options import LoopConfig, TextToImageRecipe
from daguerre.training.recipes import text_to_image
from daguerre.training.report import KindReport
from daguerre.training.shapes_judge import ShapesJudge
from daguerre.weights import load


def write_folder(folder: Path, source: ShapesSource, count: int) -> None:
    """So many pictures of a source, each with its caption beside it."""
    folder.mkdir(parents=True)
    for number in range(count):
        sample = source.sample(number % len(source), np.random.default_rng(number))
        sample.picture.save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(sample.caption)


def judged(judge: AnyJudge, model: LatentDiffusion, trials: Sequence[Trial]) -> tuple[KindReport, ...]:
    """The reports on a new picture of each trial, by kind."""
    made = sample(model, [trial.prompt for trial in trials], Request(guidance=model.guidance))
    renders = true_renders(trials)
    return evaluate(judge, trials, made, reference=renders, training=renders).report.kinds


def table(before: Sequence[KindReport], after: Sequence[KindReport], count: int) -> str:
    """Both side by side, with what the judge makes of the true renders."""
    lines = [f"| {count} prompts each, @1 (@5) | before | after | true renders |", "|---|---|---|---|"]
    for was, now in zip(before, after, strict=True):
        pairs = ((was.at_1, was.at_5), (now.at_1, now.at_5), (now.true_at_1, now.true_at_5))
        lines.append(f"| {now.kind} | " + " | ".join(f"{_interval(at_1)} ({at_5.value:.2f})" for at_1, at_5 in pairs) + " |")
    return "\n".join(lines)


def _interval(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="in the folder")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-4, help="of learning")
    parser.add_argument("--count", type=int, default=40, help="prompts of each kind")
    parser.add_argument("--judge", type=Path, default=Path("benchmarks/judge"))
    parser.add_argument("--work", type=Path, default=Path("runs/continued"))
    options = parser.parse_args()
    if options.work.exists():
        sys.exit(f"'{options.work}' exists; remove it or name another folder with --work.")
    model, count = load(), options.count
    shapes = shape_trials(model.size, count, seed=0)
    names = [replace(trial, kind="emoji, not in the folder") for trial in known_trials(EmojiSource(model.size, split="all"), count, seed=0)]

    def measured(model: LatentDiffusion) -> tuple[KindReport, ...]:
        return judged(ShapesJudge(), model, shapes) + judged(load_judge(options.judge), model, names)

    before = measured(model)
    write_folder(options.work / "pictures", ShapesSource(model.size), options.pictures)
    loop = LoopConfig(
        steps=options.steps, batch_size=16, learning_rate=options.rate, precision="bf16", ema=0.98, sample_every=options.steps
    )
    folder = text_to_image.run(TextToImageRecipe(options.work / "pictures", options.work / "run", views=1, loop=loop))
    print(table(before, measured(load(folder)), count))


if __name__ == "__main__":
    main()
