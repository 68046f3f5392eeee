"""What `daguerre train text-to-image` teaches: the embedded model before and after, on things in a new colour on a coloured background.

    python -m benchmarks.continued [--pictures 300] [--steps 400] [--count 40] [--judge benchmarks/judge] [--work runs/continued]

Either alone the model has seen, both together never: asked for a pink elephant on a green background it forgets one of them. A folder of
`--pictures` such pictures with captions is written, of every second thing, and the UNet learns on with it. Before and after, the judge of
`daguerre evaluate` ranks the prompt of each new picture among 100: of the things in the folder, of as many that are not in it, and of
plain names, which tell what was forgotten.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from daguerre.data import EmojiSource, Trial, known_trials
from daguerre.data.captions import on_background, pick
from daguerre.data.colours import PAINTS
from daguerre.data.emoji import Placed, Scene
from daguerre.data.emoji_names import with_article
from daguerre.data.emoji_things import Thing
from daguerre.data.trials import DISTRACTORS, WHOLE, Claim
from daguerre.metrics import Interval
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request
from daguerre.training.evaluate import evaluate, sample, true_renders
from daguerre.training.judge import Judge, load_judge
from daguerre.training.options import LoopConfig, TextToImageRecipe
from daguerre.training.recipes import text_to_image
from daguerre.training.report import KindReport
from daguerre.weights import load


def said(thing: Thing, colour: str, background: str) -> str:
    """ "a pink elephant on a green background" """
    return with_article(f"{colour} {thing.base}") + on_background(background)


def both(source: EmojiSource, things: Sequence[Thing], kind: str, seed: int) -> Iterator[Trial]:
    """Without end, things that can change their colour, in a new one on a background, told from what differs in one of the three."""
    rng = np.random.default_rng(seed)
    able = [thing for thing in things if source.colours_of(thing)]
    while True:
        thing = pick(rng, able)
        colour = pick(rng, source.colours_of(thing))
        grounds = [ground for ground in PAINTS if ground not in ("white", colour, thing.colour)]
        ground = pick(rng, grounds)
        others = [with_article(thing.name) + on_background(ground), with_article(f"{colour} {thing.base}")]
        others += [said(thing, other, ground) for other in source.colours_of(thing) if other not in (colour, ground)]
        others += [said(thing, colour, other) for other in grounds if other != ground]
        rest = (said(pick(rng, able), colour, ground) for _ in range(10 * DISTRACTORS))
        prompt = said(thing, colour, ground)
        distractors = [other for other in dict.fromkeys((*others, *rest)) if other != prompt][:DISTRACTORS]
        scene = Scene(kind, (Placed(thing, side=0.86, colour=colour),), prompt, ground, PAINTS[ground])
        yield Trial(_claim(prompt), source.draw(scene), kind, tuple(map(_claim, distractors)))


def _claim(prompt: str) -> Claim:
    return Claim(prompt, ((WHOLE, prompt),))


def write_folder(folder: Path, trials: Sequence[Trial]) -> None:
    """The true render of each trial, with its prompt beside it."""
    folder.mkdir(parents=True)
    for number, trial in enumerate(trials):
        trial.picture.save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(trial.prompt)


def judged(judge: Judge, model: LatentDiffusion, trials: Sequence[Trial]) -> tuple[KindReport, ...]:
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
    parser.add_argument("--pictures", type=int, default=300, help="in the folder")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=5e-5, help="of learning")
    parser.add_argument("--count", type=int, default=40, help="prompts of each kind")
    parser.add_argument("--judge", type=Path, default=Path("benchmarks/judge"))
    parser.add_argument("--work", type=Path, default=Path("runs/continued"))
    options = parser.parse_args()
    if options.work.exists():
        sys.exit(f"'{options.work}' exists; remove it or name another folder with --work.")
    model, judge, count = load(), load_judge(options.judge), options.count
    source = EmojiSource(model.size, split="all")
    here, elsewhere = (list(source.things[parity::2]) for parity in (0, 1))
    trials = [
        *islice(both(source, here, "things in the folder", seed=1), count),
        *islice(both(source, elsewhere, "other things", seed=2), count),
        *known_trials(source, count, seed=0),
    ]
    before = judged(judge, model, trials)
    write_folder(options.work / "pictures", list(islice(both(source, here, "taught", seed=3), options.pictures)))
    steps, rate = options.steps, options.rate
    loop = LoopConfig(steps=steps, batch_size=16, learning_rate=rate, precision="bf16", ema=0.99, sample_every=steps)
    folder = text_to_image.run(TextToImageRecipe(options.work / "pictures", options.work / "run", views=1, loop=loop))
    print(table(before, judged(judge, load(folder), trials), count))


if __name__ == "__main__":
    main()
