"""What `daguerre train text-to-image` teaches: the embedded model before and after, on drawn shapes, which are no emoji.

    python -m benchmarks.continued [--steps 300] [--pictures 400] [--count 45] [--work runs/continued]

A folder of drawn shapes with captions is written, the model's UNet learns on with it, and "a red circle" and the like are asked for before
and after. The judge of drawn shapes (`daguerre.training.shapes_judge`) ranks each picture's own prompt among all of them; beside the two
stands what it makes of true drawings.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from daguerre.data import ShapesMix, ShapesSource
from daguerre.data.batches import to_array
from daguerre.data.captions import article
from daguerre.metrics import retrieval, within
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.training.options import LoopConfig, TextToImageRecipe
from daguerre.training.recipes import text_to_image
from daguerre.training.shapes_judge import ShapesJudge
from daguerre.weights import load

SINGLE = ShapesMix(count=0, pair=0)
PLAIN = ShapesMix(count=0, pair=0, background=0, size=0, place=0)
BATCH = 15


def write_folder(folder: Path, size: int, count: int) -> None:
    """Pictures of one shape each, with their captions beside them."""
    source, rng = ShapesSource(size, mix=SINGLE), np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        sample = source.sample(number % len(source), rng)
        sample.picture.save(folder / f"{number:04}.png")
        (folder / f"{number:04}.txt").write_text(sample.caption)


def made(model: LatentDiffusion, prompts: list[str]) -> Tensor:
    """A picture of each prompt, (N, 3, H, W) in [−1, 1]."""
    found = []
    for first in range(0, len(prompts), BATCH):
        request = Request(prompt=tuple(prompts[first : first + BATCH]))
        found += [to_array(picture.image) for picture in generate(model, request)]
    return torch.from_numpy(np.stack(found))


def row(name: str, judge: ShapesJudge, x: Tensor, prompts: list[str]) -> str:
    """A line of the table."""
    ranks = retrieval(judge.pictures(x), judge.texts(prompts))
    return f"| {name} | {within(ranks, 1).mean():.2f} | {within(ranks, 5).mean():.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=400, help="in the folder that is learned from")
    parser.add_argument("--count", type=int, default=45, help="prompts")
    parser.add_argument("--work", type=Path, default=Path("runs/continued"))
    options = parser.parse_args()
    if options.work.exists():
        sys.exit(f"'{options.work}' exists; remove it or name another folder with --work.")
    model, judge = load(), ShapesJudge()
    source, rng = ShapesSource(model.size, mix=PLAIN), np.random.default_rng(1)
    chosen = rng.permutation(len(source))[: options.count].tolist()
    prompts = [article(" ".join(source.things[index])) for index in chosen]
    drawn = torch.from_numpy(np.stack([to_array(source.sample(index, rng).picture) for index in chosen]))
    lines = [f"| {len(prompts)} prompts | @1 | @5 |", "|---|---|---|", row("before", judge, made(model, prompts), prompts)]
    write_folder(options.work / "pictures", model.size, options.pictures)
    loop = LoopConfig(steps=options.steps, batch_size=8, learning_rate=3e-4, precision="bf16", ema=0.98, sample_every=0)
    folder = text_to_image.run(TextToImageRecipe(options.work / "pictures", options.work / "run", views=1, loop=loop))
    lines += [row("after", judge, made(load(folder), prompts), prompts), row("true drawings", judge, drawn, prompts)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
