"""What `daguerre train text-to-image` teaches: the embedded model before and after, on emoji in colours that it was never shown.

    python -m benchmarks.continued [--count 60] [--steps 400] [--judge benchmarks/judge] [--work runs/continued]

A folder of `--count` pictures in held-out colours ("a blue apple") is written, and the UNet learns on with it. Before and after, the
judge of `daguerre evaluate` ranks the prompt of each new picture among 100: of what was taught, of as many held-out colours that were not,
and of plain names, which tell what was forgotten. Pictures begin from noise, so what was taught is drawn, not found again.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from daguerre.data import EmojiSource, Trial, held_out_trials, known_trials
from daguerre.metrics import Interval
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request
from daguerre.training.evaluate import evaluate, sample, true_renders
from daguerre.training.judge import Judge, load_judge
from daguerre.training.options import LoopConfig, TextToImageRecipe
from daguerre.training.recipes import text_to_image
from daguerre.training.report import Report
from daguerre.weights import load


def write_folder(folder: Path, trials: Sequence[Trial]) -> None:
    """The true render of each trial, with its prompt beside it."""
    folder.mkdir(parents=True)
    for number, trial in enumerate(trials):
        trial.picture.save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(trial.prompt)


def judged(judge: Judge, model: LatentDiffusion, trials: Sequence[Trial], taught: int) -> Report:
    """The report on a new picture of each trial; the first `taught` were in the folder."""
    made = sample(model, [trial.prompt for trial in trials], Request(guidance=model.guidance))
    renders = true_renders(trials)
    return evaluate(judge, trials, made, reference=renders, training=renders[:taught]).report


def table(before: Report, after: Report, count: int) -> str:
    """Both reports side by side, with what the judge makes of the true renders."""
    lines = [f"| {count} prompts each, @1 (@5) | before | after | true renders |", "|---|---|---|---|"]
    for was, now in zip(before.kinds, after.kinds, strict=True):
        pairs = ((was.at_1, was.at_5), (now.at_1, now.at_5), (now.true_at_1, now.true_at_5))
        lines.append(f"| {now.kind} | " + " | ".join(f"{_interval(at_1)} ({at_5.value:.2f})" for at_1, at_5 in pairs) + " |")
    return "\n".join(lines)


def _interval(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="pictures in the folder, and prompts of each kind")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--judge", type=Path, default=Path("benchmarks/judge"))
    parser.add_argument("--work", type=Path, default=Path("runs/continued"))
    options = parser.parse_args()
    if options.work.exists():
        sys.exit(f"'{options.work}' exists; remove it or name another folder with --work.")
    model, judge, count = load(), load_judge(options.judge), options.count
    source = EmojiSource(model.size, split="all")
    colours = held_out_trials(source, 2 * count, seed=0, kinds=("colour",))
    taught = [replace(trial, kind="taught") for trial in colours[:count]]
    trials = [*taught, *(replace(trial, kind="not taught") for trial in colours[count:]), *known_trials(source, count, seed=0)]
    before = judged(judge, model, trials, count)
    write_folder(options.work / "pictures", taught)
    loop = LoopConfig(steps=options.steps, batch_size=16, learning_rate=1e-4, precision="bf16", ema=0.98, sample_every=0)
    folder = text_to_image.run(TextToImageRecipe(options.work / "pictures", options.work / "run", views=1, loop=loop))
    print(table(before, judged(judge, load(folder), trials, count), count))


if __name__ == "__main__":
    main()
