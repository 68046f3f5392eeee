"""How well images follow edges of things that the training of a ControlNet never had, with and without it.

    python -m benchmarks.controlnet_edges images scenes                  # 2000 training images of 9 in 10 things, with captions
    daguerre train controlnet --data scenes --control canny --out runs/edges --max-train-steps 1200 --batch-size 4 --learning-rate 1e-3 \\
        --lr-warmup-steps 50 --lr-scheduler warmup_stable_decay --shift 3
    python -m benchmarks.controlnet_edges measure runs/edges/edges edges.webp
"""

import sys
from pathlib import Path

import numpy as np
import torch

import daguerre
from daguerre.adapters import load_controlnet, with_adapters
from daguerre.data import EmojiDataset, EmojiMix, Sample
from daguerre.metrics.edges import edge_f1
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.images.grid import image_table
from daguerre.pipelines.images.preprocessors import preprocess

SIZE = 128
COUNT = 2000  # training images
HELD_OUT_EVERY = 10  # of the things; training has no image of them
MEASURED, SHOWN = 32, 6
MIX = EmojiMix(recoloured=0.4, background=0.2, pair=0, centred=0.2, mirrored=0.5)


def scenes(held_out: bool, count: int) -> list[Sample]:
    """Images of one thing each at a random position: of the held-out things, or of all others."""
    dataset = EmojiDataset(SIZE, mix=MIX)
    things = [index for index in range(len(dataset)) if (index % HELD_OUT_EVERY == 0) == held_out]
    order = np.random.default_rng(held_out).permutation(len(things) * -(-count // len(things)))[:count]
    return [dataset.sample(things[position % len(things)], np.random.default_rng([held_out, position])) for position in order]


def make_images(folder: Path) -> None:
    """Write the training images and their captions."""
    folder.mkdir(parents=True)
    for number, sample in enumerate(scenes(False, COUNT)):
        sample.image.save(folder / f"{number:04}.png")
        (folder / f"{number:04}.txt").write_text(sample.caption)


def measure(controlnet: Path, out: Path) -> None:
    """Print the edge F1 of images of held-out scenes without and with the ControlNet and prompts, and save a sheet of some."""
    base = daguerre.load()
    assert isinstance(base, LatentDiffusion)
    controlled, found = with_adapters(base, [load_controlnet(controlnet, base)]), scenes(True, MEASURED)
    maps = [preprocess(sample.image, "canny") for sample in found]
    rows = {"map": maps}
    for named, prompts in {"no prompt": [""] * len(found), "prompt": [sample.caption for sample in found]}.items():
        plain = [daguerre.generate(base, prompt, seed=seed)[0].image for seed, prompt in enumerate(prompts)]
        followed = [
            daguerre.generate(controlled, prompt, seed=seed, control_images=(edges,))[0].image
            for seed, (prompt, edges) in enumerate(zip(prompts, maps, strict=True))
        ]
        for name, images in {"without": plain, "with": followed, "with another map": [*followed[1:], followed[0]]}.items():
            scores = [edge_f1(preprocess(image, "canny"), edges) for image, edges in zip(images, maps, strict=True)]
            print(f"{named}, {name}: edge F1 {np.mean(scores):.3f} ± {np.std(scores) / len(scores) ** 0.5:.3f}", flush=True)
        rows |= {f"without, {named}": plain, f"with, {named}": followed}
    columns = [sample.caption for sample in found]
    image_table([row[:SHOWN] for row in rows.values()], rows=list(rows), columns=columns[:SHOWN]).image.save(out, quality=90)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "images":
        make_images(Path(sys.argv[2]))
    else:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
