"""Does the map of "circle" lie on the circle? Pointing accuracy of the maps of words, against where the shapes are.

    python -m benchmarks.pointing --model runs/shapes/model [--count 256] [--out docs/pointing.md]

A map points well if its highest place lies on the thing that the word names (the pointing game: Zhang et al. 2016, arXiv:1608.00507,
section 4.2). Two protocols:

  drawn  a true drawing is noised to one level, and the maps of one call are compared with the mask that it was drawn from.
  made   pictures are made from captions, maps recorded over the whole walk; what shows the colour that the caption gives a shape is taken
         for that shape. A shape whose colour shows on less than 1 % of the picture was not made, and is counted apart.

Beside each stands what chance would give: the mean share of the picture that the shapes cover.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import daguerre
from daguerre.data import ShapesDataset
from daguerre.data.colours import NAMES, classify
from daguerre.data.images import to_tensor
from daguerre.data.shapes import ShapesScene
from daguerre.diffusion import Denoiser
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.pipelines.attention_maps import WordMap, record_attention

BATCH = 32
SIGMAS = (0.5, 2.0, 8.0)
MADE = 0.01  # share of the picture that must show a shape's colour


@dataclass(frozen=True)
class Trial:
    """A word's map (H, W) and where the thing is (H, W) in [0, 1]."""

    word: str
    heat: np.ndarray
    truth: np.ndarray

    @property
    def hit(self) -> bool:
        """Whether the highest place of the map lies on the thing."""
        return bool(self.truth[np.unravel_index(self.heat.argmax(), self.heat.shape)] > 0.5)


def scenes_of(kind: str, source: ShapesDataset, count: int, seed: int) -> list[ShapesScene]:
    """Scenes of one shape ("single") or of two ("pair") that differ in shape and in colour, so that each word and each colour means one."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = source.scene(int(rng.integers(len(source))), rng)
        differ = [len({getattr(drawn, name) for drawn in scene.shapes}) == len(scene.shapes) for name in ("shape", "colour")]
        if scene.kind == kind and all(differ):
            found.append(scene)
    return found


def trials(maps: list[WordMap], scene: ShapesScene, truths: np.ndarray) -> Iterator[Trial]:
    """A trial for each shape of a scene; truths (shapes, H, W)."""
    for drawn, truth in zip(scene.shapes, truths, strict=True):
        heat = next(word for word in maps if word.text == drawn.shape).resized(*truth.shape)
        yield Trial(drawn.shape, heat.numpy(), truth)


def drawn(model: LatentDiffusion, source: ShapesDataset, scenes: list[ShapesScene], sigma: float, seed: int) -> list[Trial]:
    """The protocol `drawn` at one noise level."""
    denoiser, noise, found = Denoiser(model.unet, model.schedule, model.prediction), torch.Generator().manual_seed(seed), []
    for first in range(0, len(scenes), BATCH):
        part = scenes[first : first + BATCH]
        x = to_tensor(np.stack([np.asarray(source.render(scene)) for scene in part]))
        with torch.no_grad(), record_attention(model) as record:
            z = model.autoencoder.encode(x)
            z = z + sigma * torch.randn(z.shape, generator=noise)
            denoiser(z, torch.tensor(sigma), model.conditioner([scene.caption for scene in part]))
        for i, scene in enumerate(part):
            found += trials(record.words(i), scene, source.masks(scene))
    return found


def made(model: LatentDiffusion, scenes: list[ShapesScene], seed: int) -> tuple[list[Trial], int]:
    """The protocol `made`: trials of the shapes that were made, and how many there were to make."""
    found: list[Trial] = []
    for first in range(0, len(scenes), BATCH):
        part = scenes[first : first + BATCH]
        request = Request(prompt=tuple(scene.caption for scene in part), seed=seed)
        with record_attention(model) as record:
            pictures = generate(model, request)
        for i, (scene, picture) in enumerate(zip(part, pictures, strict=True)):
            classes = classify(np.asarray(picture.image))
            truths = np.stack([(classes == NAMES.index(each.colour)).astype(np.float32) for each in scene.shapes])
            found += (trial for trial in trials(record.words(i), scene, truths) if trial.truth.mean() >= MADE)
    return found, sum(len(scene.shapes) for scene in scenes)


def row(name: str, found: list[Trial], of: int | None = None) -> str:
    """A line of the table: accuracy, its standard error, chance."""
    hits = np.array([trial.hit for trial in found])
    error = (hits.mean() * (1 - hits.mean()) / len(hits)) ** 0.5
    chance = np.mean([(trial.truth > 0.5).mean() for trial in found])
    return f"| {name} | {hits.mean():.3f} ± {error:.3f} | {chance:.3f} | {len(hits)}{f' of {of}' if of else ''} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder that `daguerre train shapes` made")
    parser.add_argument("--count", type=int, default=256, help="scenes of each kind, of one shape and of two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    model = daguerre.load(options.model)
    assert isinstance(model, LatentDiffusion)
    source = ShapesDataset(model.sample_size, split="all")
    lines = ["| protocol | pointing accuracy | chance | shapes |", "|---|---|---|---|"]
    for kind in ("single", "pair"):
        scenes = scenes_of(kind, source, options.count, options.seed)
        lines += [row(f"{kind}, drawn, σ = {sigma:g}", drawn(model, source, scenes, sigma, options.seed)) for sigma in SIGMAS]
        lines.append(row(f"{kind}, made", *made(model, scenes, options.seed)))
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
