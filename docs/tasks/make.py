"""Makes every picture of these pages with the embedded model: `python docs/tasks/make.py [NAME …]`, a few minutes on two cores."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import daguerre
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


def disc(left: int, top: int, right: int, bottom: int) -> Any:
    """A mask of the pictures' size, white in an ellipse."""
    y, x = np.mgrid[0:64, 0:64]
    inside = ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2 <= 1
    return Image.fromarray(np.uint8(inside) * 255)


def img2img(model: LatentDiffusion) -> Image.Image:
    strengths = 0, 0.4, 0.6, 0.8, 1
    new = [draw(model, prompt="a green apple", seed=3, task=ImageToImage(apple(model), s)) for s in strengths]
    return labelled_grid([apple(model), *new], ["given", *(f"strength {s:g}" for s in strengths)], columns=6)


def inpaint(model: LatentDiffusion) -> Image.Image:
    face, mask = draw(model, prompt="a grinning face", seed=1), disc(8, 34, 56, 60)
    new = [draw(model, prompt=prompt, seed=1, task=Inpaint(face, mask, strength)) for prompt, strength in FACES]
    return labelled_grid([face, mask.convert("RGB"), *new], ["given", "mask", *(f"{prompt}, {s:g}" for prompt, s in FACES)], columns=5)


FACES = (("a crying face", 1.0), ("an angry face", 1.0), ("an angry face", 0.7))


def outpaint(model: LatentDiffusion) -> Image.Image:
    wide = Image.new("RGB", (96, 64), "white")
    wide.paste(apple(model), (0, 0))
    new = [draw(model, prompt="two red apples", seed=seed, task=Outpaint(apple(model), right=32)) for seed in (0, 1, 2)]
    return labelled_grid([wide, *new], ["given", *(f"32 pixels at the right, seed {seed}" for seed in (0, 1, 2))], columns=4)


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

    words = {"prompt": "a red flower", "seed": 4}
    axes = "no", "both", "horizontal"
    return labelled_grid([four(draw(model, seamless=axis, **words)) for axis in axes], [f"seamless {axis}" for axis in axes], columns=3)


SHEETS: dict[str, Sheet] = {sheet.__name__: sheet for sheet in (img2img, inpaint, outpaint, hires, variations, seamless)}


if __name__ == "__main__":
    model = daguerre.load()
    for name in sys.argv[1:] or SHEETS:
        SHEETS[name](model).save(HERE / f"{name}.png", optimize=True)
        print(HERE / f"{name}.png")
