"""The distance of outpainted margins from the background that they should continue, by strength.

    python -m benchmarks.outpainting

The embedded model extends images of things on plain backgrounds by a quarter of their width on the left and right. The table has the mean
distance of these margins from the background colour.
"""

import argparse

import numpy as np

from daguerre.data import EmojiDataset
from daguerre.data.colours import PAINTS
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.tasks import Outpaint
from daguerre.weights import load_diffusion

THINGS = {"rocket": "blue", "red apple": "white", "red heart": "yellow", "pizza": "white", "cat face": "green", "tiger face": "blue"}
SIDE, MARGIN, COUNT = 128, 32, 2


def distances(model: LatentDiffusion, name: str, background: str, strength: float) -> list[float]:
    """The mean distance (0 … 255) of the margins of each image from the background colour."""
    colour = PAINTS[background]
    task = Outpaint(InputImage.from_any(EmojiDataset(SIDE).portrait(name, background)), left=MARGIN, right=MARGIN, strength=strength)
    request = Request(prompt=f"a {name} on a {background} background", num_images=COUNT, task=task)
    images = [np.asarray(image.image, dtype=float) for image in generate(model, request)]
    return [np.abs(np.concatenate([x[:, :MARGIN], x[:, -MARGIN:]], axis=1) - colour).mean() for x in images]


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    model = load_diffusion()
    print(f"| strength | mean distance of the margins (0 … 255), {COUNT * len(THINGS)} images |\n|---|---|")
    for strength in (1.0, 0.9, 0.8, 0.7):
        found = [each for name, background in THINGS.items() for each in distances(model, name, background, strength)]
        print(f"| {strength:g} | {np.mean(found):.1f} |", flush=True)


if __name__ == "__main__":
    main()
