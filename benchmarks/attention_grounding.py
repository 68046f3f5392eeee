"""Pointing accuracy of attention maps: whether the map of a word such as "circle" points at the circle.

    python -m benchmarks.attention_grounding --model runs/shapes/model [--count 256] [--out table.md]

A map is correct if its maximum is on the thing that the word names (the pointing game: Zhang et al. 2016, arXiv:1608.00507, section 4.2).
Two protocols:

  rendered   a render is noised to one level, and the attention maps of one UNet call are compared with the masks of its shapes.
  generated  images are generated from captions, with maps of all steps; pixels of the colour in the caption count as the shape. Shapes with
             this colour on less than 1 % of the image were not generated and are excluded.

The chance column is the mean fraction of the image that the shapes cover.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import daguerre
from daguerre.data import ShapesDataset
from daguerre.data.colours import COLOUR_CLASSES, classify
from daguerre.data.images import to_tensor
from daguerre.data.shapes import ShapesScene
from daguerre.diffusion import Denoiser
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.pipelines.attention_maps import WordMap, record_attention

BATCH = 32
SIGMAS = (0.5, 2.0, 8.0)
MIN_SHARE = 0.01  # of the image with a shape's colour


@dataclass(frozen=True)
class WordResult:
    """The attention map (H, W) of a word and the mask (H, W) of its thing in [0, 1]."""

    word: str
    heat: np.ndarray
    truth: np.ndarray

    @property
    def hit(self) -> bool:
        """Whether the maximum of the map is on the thing."""
        return bool(self.truth[np.unravel_index(self.heat.argmax(), self.heat.shape)] > 0.5)


def scenes_of(kind: str, source: ShapesDataset, count: int, seed: int) -> list[ShapesScene]:
    """Scenes of one shape ("single") or of two ("pair") of different kind and colour, so that words and colours are unambiguous."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = source.scene(int(rng.integers(len(source))), rng)
        differ = [len({getattr(drawn, name) for drawn in scene.shapes}) == len(scene.shapes) for name in ("shape", "colour")]
        if scene.kind == kind and all(differ):
            found.append(scene)
    return found


def word_results(maps: list[WordMap], scene: ShapesScene, truths: np.ndarray) -> Iterator[WordResult]:
    """A result for each shape of a scene; truths (shapes, H, W)."""
    for drawn, truth in zip(scene.shapes, truths, strict=True):
        heat = next(word for word in maps if word.text == drawn.shape).resized(*truth.shape)
        yield WordResult(drawn.shape, heat.numpy(), truth)


def rendered(model: LatentDiffusion, source: ShapesDataset, scenes: list[ShapesScene], sigma: float, seed: int) -> list[WordResult]:
    """The protocol `rendered` at one noise level."""
    denoiser, noise, found = Denoiser(model.unet, model.schedule, model.prediction), torch.Generator().manual_seed(seed), []
    for first in range(0, len(scenes), BATCH):
        part = scenes[first : first + BATCH]
        x = to_tensor(np.stack([np.asarray(source.render(scene)) for scene in part]))
        with torch.no_grad(), record_attention(model) as record:
            z = model.autoencoder.encode(x)
            z = z + sigma * torch.randn(z.shape, generator=noise)
            denoiser(z, torch.tensor(sigma), model.conditioner([scene.caption for scene in part]))
        for i, scene in enumerate(part):
            found += word_results(record.words(i), scene, source.masks(scene))
    return found


def generated(model: LatentDiffusion, scenes: list[ShapesScene], seed: int) -> tuple[list[WordResult], int]:
    """The protocol `generated`: results of the generated shapes, and the number of shapes in the captions."""
    found: list[WordResult] = []
    for first in range(0, len(scenes), BATCH):
        part = scenes[first : first + BATCH]
        request = Request(prompt=tuple(scene.caption for scene in part), seed=seed)
        with record_attention(model) as record:
            images = generate(model, request)
        for i, (scene, image) in enumerate(zip(part, images, strict=True)):
            classes = classify(np.asarray(image.image))
            truths = np.stack([(classes == COLOUR_CLASSES.index(each.colour)).astype(np.float32) for each in scene.shapes])
            found += (result for result in word_results(record.words(i), scene, truths) if result.truth.mean() >= MIN_SHARE)
    return found, sum(len(scene.shapes) for scene in scenes)


def row(name: str, found: list[WordResult], of: int | None = None) -> str:
    """A table row: accuracy, standard error, chance."""
    hits = np.array([result.hit for result in found])
    error = (hits.mean() * (1 - hits.mean()) / len(hits)) ** 0.5
    chance = np.mean([(result.truth > 0.5).mean() for result in found])
    return f"| {name} | {hits.mean():.3f} ± {error:.3f} | {chance:.3f} | {len(hits)}{f' of {of}' if of else ''} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder from `daguerre train shapes`")
    parser.add_argument("--count", type=int, default=256, help="number of scenes of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    model = daguerre.load(options.model)
    assert isinstance(model, LatentDiffusion)
    source = ShapesDataset(model.sample_size, split="all")
    lines = ["| protocol | pointing accuracy | chance | shapes |", "|---|---|---|---|"]
    for kind in ("single", "pair"):
        scenes = scenes_of(kind, source, options.count, options.seed)
        lines += [row(f"{kind}, rendered, σ = {sigma:g}", rendered(model, source, scenes, sigma, options.seed)) for sigma in SIGMAS]
        lines.append(row(f"{kind}, generated", *generated(model, scenes, options.seed)))
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
