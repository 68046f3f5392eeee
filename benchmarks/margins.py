"""How far outpainted margins are from what they should continue, by guidance: python -m benchmarks.margins

Things on a plain background get 16 pixels more at both sides by the embedded model; the mean distance of these from the background is told.
"""

import numpy as np

from daguerre.data import EmojiSource
from daguerre.data.colours import PAINTS
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.pipelines.given import Given
from daguerre.pipelines.tasks import Outpaint
from daguerre.weights import load

THINGS = {"rocket": "blue", "red apple": "white", "red heart": "yellow", "pizza": "white", "cat face": "green", "tiger face": "blue"}
MARGIN, COUNT = 16, 2


def distances(model: LatentDiffusion, name: str, background: str, guidance: float) -> list[float]:
    """The mean distance, of 255, of each picture's margins from the background's colour."""
    colour = PAINTS[background]
    task = Outpaint(Given.of(EmojiSource().portrait(name, background)), left=MARGIN, right=MARGIN)
    request = Request(prompt=f"a {name} on a {background} background", guidance=guidance, count=COUNT, task=task)
    pictures = [np.asarray(picture.image, dtype=float) for picture in generate(model, request)]
    return [np.abs(np.concatenate([x[:, :MARGIN], x[:, -MARGIN:]], axis=1) - colour).mean() for x in pictures]


def main() -> None:
    model = load()
    print(f"| guidance | distance of the margins, {COUNT * len(THINGS)} pictures |\n|---|---|")
    for guidance in (5.0, 2.0, 1.5):
        found = [each for name, background in THINGS.items() for each in distances(model, name, background, guidance)]
        print(f"| {guidance:g} | {np.mean(found):.1f} |", flush=True)


if __name__ == "__main__":
    main()
