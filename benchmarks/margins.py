"""How far outpainted margins are from what they should continue, by strength: python -m benchmarks.margins

Things on a plain background get a quarter of their side more at both sides by the embedded model; the mean distance of these from the
background is told.
"""

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
    """The mean distance, of 255, of each picture's margins from the background's colour."""
    colour = PAINTS[background]
    task = Outpaint(InputImage.from_any(EmojiDataset(SIDE).portrait(name, background)), left=MARGIN, right=MARGIN, strength=strength)
    request = Request(prompt=f"a {name} on a {background} background", num_images=COUNT, task=task)
    pictures = [np.asarray(picture.image, dtype=float) for picture in generate(model, request)]
    return [np.abs(np.concatenate([x[:, :MARGIN], x[:, -MARGIN:]], axis=1) - colour).mean() for x in pictures]


def main() -> None:
    model = load_diffusion()
    print(f"| strength | distance of the margins, of 255, {COUNT * len(THINGS)} pictures |\n|---|---|")
    for strength in (1.0, 0.9, 0.8, 0.7):
        found = [each for name, background in THINGS.items() for each in distances(model, name, background, strength)]
        print(f"| {strength:g} | {np.mean(found):.1f} |", flush=True)


if __name__ == "__main__":
    main()
