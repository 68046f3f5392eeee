"""Generate the images of these pages with the embedded model: `python docs/tasks/make.py [NAME …]`, a few minutes on two cores.

Input images are rendered from the archive that the model was trained on.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import daguerre
from daguerre.data import EmojiDataset
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.request import Variation
from daguerre.pipelines.tasks import Hires, ImageToImage, Inpaint, Outpaint

HERE = Path(__file__).parent
SIDE = 128  # pixels, of the model's images
APPLE = {"prompt": "a red apple", "seed": 3}

Sheet = Callable[[LatentDiffusion], Image.Image]


def generate(model: LatentDiffusion, **fields: Any) -> Any:
    return daguerre.generate(model, **fields)[0].image


def apple(model: LatentDiffusion) -> Any:
    return generate(model, **APPLE)


def emoji(name: str, background: str = "white") -> Image.Image:
    """An emoji as rendered for training."""
    return EmojiDataset(SIDE).portrait(name, background)


def img2img(model: LatentDiffusion) -> Image.Image:
    strengths, source = (0, 0.4, 0.6, 0.8, 1), emoji("red apple")
    new = [generate(model, prompt="a green apple", seed=3, task=ImageToImage(source, s)) for s in strengths]
    return labelled_grid([source, *new], ["input", *(f"strength {s:g}" for s in strengths)], columns=6)


def inpaint(model: LatentDiffusion) -> Image.Image:
    heart, mask = emoji("red heart"), Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 40, SIDE, 88))
    prompts = "a blue heart", "a green heart", "a purple heart"
    new = [generate(model, prompt=prompt, seed=1, task=Inpaint(heart, mask)) for prompt in prompts]
    return labelled_grid([heart, mask.convert("RGB"), *new], ["input", "mask", *prompts], columns=5)


def outpaint(model: LatentDiffusion) -> Image.Image:
    rocket = emoji("rocket", "blue")
    source = Image.new("RGB", (SIDE + 64, SIDE), "white")
    source.paste(rocket, (32, 0))
    sheet, labels = [source], ["input"]
    for strength in (1.0, 0.8):
        task = Outpaint(rocket, left=32, right=32, strength=strength)
        sheet += [generate(model, prompt="a rocket on a blue background", seed=seed, task=task) for seed in (0, 1)]
        labels += [f"strength {strength:g}, seed {seed}" for seed in (0, 1)]
    return labelled_grid(sheet, labels, columns=5)


def hires(model: LatentDiffusion) -> Image.Image:
    twice = 2 * SIDE, 2 * SIDE
    large = [generate(model, width=2 * SIDE, height=2 * SIDE, **APPLE)]
    large += [generate(model, task=Hires(2, 0.3, upscaler), **APPLE) for upscaler in ("lanczos", "latent")]
    images = [apple(model).resize(twice, Image.Resampling.LANCZOS), *large]
    return labelled_grid(images, ["128 pixels", "256 directly", "256, lanczos", "256, latent"], columns=4)


def variations(model: LatentDiffusion) -> Image.Image:
    strengths = 0, 0.2, 0.4, 0.6, 0.8, 1
    images = [generate(model, prompt="a flag", seed=20, variation=Variation(5, strength)) for strength in strengths]
    return labelled_grid(images, [f"strength {strength:g}" for strength in strengths], columns=6)


def tiling(model: LatentDiffusion) -> Image.Image:
    def four(tile: Image.Image) -> Image.Image:
        sheet = Image.new("RGB", (tile.width * 2, tile.height * 2))
        for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
            sheet.paste(tile, (x * tile.width, y * tile.height))
        return sheet

    fields = {"prompt": "a cookie on a green background", "seed": 0}
    axes = "none", "both", "x"
    return labelled_grid([four(generate(model, tiling=axis, **fields)) for axis in axes], [f"tiling {axis}" for axis in axes], columns=3)


SHEETS: dict[str, Sheet] = {sheet.__name__: sheet for sheet in (img2img, inpaint, outpaint, hires, variations, tiling)}


if __name__ == "__main__":
    model = daguerre.load()
    for name in sys.argv[1:] or SHEETS:
        SHEETS[name](model).save(HERE / f"{name}.png", optimize=True)
        print(HERE / f"{name}.png")
