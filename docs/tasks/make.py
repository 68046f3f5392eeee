"""Makes every picture of these pages with the embedded model: `python docs/tasks/make.py [NAME …]`, a few minutes on two cores.

What is given to a task is drawn from the archive that the model learned from; what was made of it is the model's.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import daguerre
from daguerre.data import EmojiSource
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.grid import labelled_grid
from daguerre.pipelines.request import Variation
from daguerre.pipelines.tasks import Hires, ImageToImage, Inpaint, Outpaint

HERE = Path(__file__).parent
APPLE = {"prompt": "a red apple", "seed": 3}

Sheet = Callable[[LatentDiffusion], Image.Image]


def draw(model: LatentDiffusion, **fields: Any) -> Any:
    return daguerre.generate(model, **fields)[0].image


def apple(model: LatentDiffusion) -> Any:
    return draw(model, **APPLE)


def emoji(name: str, background: str = "white") -> Image.Image:
    """A thing as the model's training pictures show it, 64 pixels a side."""
    return EmojiSource().portrait(name, background)


def img2img(model: LatentDiffusion) -> Image.Image:
    strengths, given = (0, 0.4, 0.6, 0.8, 1), emoji("red apple")
    new = [draw(model, prompt="a green apple", seed=3, task=ImageToImage(given, s)) for s in strengths]
    return labelled_grid([given, *new], ["given", *(f"strength {s:g}" for s in strengths)], columns=6)


def inpaint(model: LatentDiffusion) -> Image.Image:
    heart, mask = emoji("red heart"), Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 20, 64, 44))
    prompts = "a blue heart", "a green heart", "a purple heart"
    new = [draw(model, prompt=prompt, seed=1, task=Inpaint(heart, mask)) for prompt in prompts]
    return labelled_grid([heart, mask.convert("RGB"), *new], ["given", "mask", *prompts], columns=5)


def outpaint(model: LatentDiffusion) -> Image.Image:
    rocket, seeds = emoji("rocket", "blue"), (0, 1)
    given = Image.new("RGB", (96, 64), "white")
    given.paste(rocket, (16, 0))
    task = Outpaint(rocket, left=16, right=16)
    scales = 5, 1.5
    new = [draw(model, prompt="a rocket on a blue background", seed=seed, guidance=s, task=task) for s in scales for seed in seeds]
    return labelled_grid([given, *new], ["given", *(f"guidance {s:g}, seed {seed}" for s in scales for seed in seeds)], columns=5)


def hires(model: LatentDiffusion) -> Image.Image:
    large = [draw(model, width=128, height=128, **APPLE)]
    large += [draw(model, task=Hires(2, 0.5, through), **APPLE) for through in ("pixels", "latents")]
    images = [apple(model).resize((128, 128), Image.Resampling.LANCZOS), *large]
    return labelled_grid(images, ["64 pixels", "128 at once", "128 through pixels", "128 through latents"], columns=4)


def variations(model: LatentDiffusion) -> Image.Image:
    weights = 0, 0.2, 0.4, 0.6, 0.8, 1
    images = [draw(model, variation=Variation(8, weight), **APPLE) for weight in weights]
    return labelled_grid(images, [f"8:{weight:g}" for weight in weights], columns=6)


def seamless(model: LatentDiffusion) -> Image.Image:
    def four(tile: Image.Image) -> Image.Image:
        sheet = Image.new("RGB", (tile.width * 2, tile.height * 2))
        for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
            sheet.paste(tile, (x * tile.width, y * tile.height))
        return sheet

    words = {"prompt": "a red flower on a green background", "seed": 4}
    axes = "no", "both", "horizontal"
    return labelled_grid([four(draw(model, seamless=axis, **words)) for axis in axes], [f"seamless {axis}" for axis in axes], columns=3)


SHEETS: dict[str, Sheet] = {sheet.__name__: sheet for sheet in (img2img, inpaint, outpaint, hires, variations, seamless)}


if __name__ == "__main__":
    model = daguerre.load()
    for name in sys.argv[1:] or SHEETS:
        SHEETS[name](model).save(HERE / f"{name}.png", optimize=True)
        print(HERE / f"{name}.png")
