"""The effect of `daguerre train text-to-image` on the embedded model: things in a new colour on a coloured background.

    python -m benchmarks.fine_tuning [--images 300] [--steps 400] [--count 40] [--work runs/continued]

The model was trained on recoloured things and on coloured backgrounds, but never on both: "a pink elephant on a green background" gives an
elephant that is hardly pink. This writes a folder of `--images` such images with captions, of every second thing, and fine-tunes the UNet
on it. It compares generated images with the true renders of their prompts by PSNR before and after: for things in the folder, for other
things, and for things in their original colours on white, which show forgetting.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from daguerre.data import EmojiDataset
from daguerre.data.captions import on_background, pick
from daguerre.data.colours import PAINTS
from daguerre.data.emoji.dataset import EmojiScene, PlacedThing
from daguerre.data.emoji.names import with_article
from daguerre.data.emoji.things import Thing
from daguerre.data.images import to_tensor
from daguerre.evaluation.evaluate import generate_set
from daguerre.metrics import psnr
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request
from daguerre.training.config import LoopConfig
from daguerre.training.options.text_to_image import TextToImageRecipe
from daguerre.training.recipes import text_to_image
from daguerre.weights import load_diffusion


def both(source: EmojiDataset, things: Sequence[Thing], seed: int) -> Iterator[EmojiScene]:
    """Without end, things that can change their colour, in a new one on a background: "a pink elephant on a green background"."""
    rng = np.random.default_rng(seed)
    able = [thing for thing in things if source.colours_of(thing)]
    while True:
        thing = pick(rng, able)
        colour = pick(rng, source.colours_of(thing))
        ground = pick(rng, [ground for ground in PAINTS if ground not in ("white", colour, thing.colour)])
        caption = with_article(f"{colour} {thing.base}") + on_background(ground)
        yield EmojiScene("both", (PlacedThing(thing, side=0.86, colour=colour),), caption, ground, PAINTS[ground])


def plain(things: Sequence[Thing], seed: int) -> Iterator[EmojiScene]:
    """Without end, things as they are, on white."""
    rng = np.random.default_rng(seed)
    while True:
        thing = pick(rng, things)
        yield EmojiScene("single", (PlacedThing(thing),), with_article(thing.name))


def write_folder(folder: Path, source: EmojiDataset, scenes: Sequence[EmojiScene]) -> None:
    """Write the render and the caption of each scene."""
    folder.mkdir(parents=True)
    for number, scene in enumerate(scenes):
        source.render(scene).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(scene.caption)


def similarity(model: LatentDiffusion, source: EmojiDataset, scenes: Sequence[EmojiScene]) -> np.ndarray:
    """The PSNR in dB between a generated image for each caption and the render of the scene."""
    images = generate_set(model, [scene.caption for scene in scenes], Request(guidance_scale=model.default_guidance)).images
    return psnr(torch.stack([to_tensor(source.render(scene)) for scene in scenes]), images).numpy()


def table(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> str:
    """Mean PSNR, and the gain with its standard error over the prompts."""
    lines = ["| PSNR to the true render, dB | before | after | gain | improved |", "|---|---|---|---|---|"]
    for kind, was in before.items():
        gain = after[kind] - was
        error = gain.std(ddof=1) / len(gain) ** 0.5
        means, nearer = f"{was.mean():.1f} | {after[kind].mean():.1f}", f"{(gain > 0).sum()} of {len(gain)}"
        lines.append(f"| {kind} | {means} | {gain.mean():+.1f} ± {error:.1f} | {nearer} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="number of images in the folder")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=5e-5, help="learning rate")
    parser.add_argument("--count", type=int, default=40, help="prompts of each kind")
    parser.add_argument("--work", type=Path, default=Path("runs/continued"))
    parser.add_argument("--trained", type=Path, help="an already fine-tuned model; default: train one")
    options = parser.parse_args()
    if options.work.exists():
        sys.exit(f"'{options.work}' exists; remove it or give another folder with --work.")
    model, count, steps = load_diffusion(), options.count, options.steps
    source = EmojiDataset(model.sample_size, split="all")
    here, elsewhere = source.things[0::2], source.things[1::2]
    kinds = {
        "things in the folder": both(source, here, 1),
        "other things": both(source, elsewhere, 2),
        "original colours": plain(source.things, 3),
    }
    scenes = {kind: list(islice(of, count)) for kind, of in kinds.items()}
    before = {kind: similarity(model, source, of) for kind, of in scenes.items()}
    folder = options.trained
    if folder is None:
        write_folder(options.work / "images", source, list(islice(both(source, here, 4), options.images)))
        loop = LoopConfig(
            max_train_steps=steps, batch_size=16, learning_rate=options.rate, mixed_precision="auto", ema_decay=0.99, sample_every=steps
        )
        folder = text_to_image.run(TextToImageRecipe(options.work / "images", options.work / "run", crops_per_image=1, loop=loop))
    trained = load_diffusion(folder)
    print(table(before, {kind: similarity(trained, source, of) for kind, of in scenes.items()}))


if __name__ == "__main__":
    main()
