"""Make the images of the page about LoRA training.

python docs/lora/make.py images blueprints        # the training images: 20 emoji as white lines on blue, with captions
python docs/lora/make.py sheet  runs/blueprint/blueprint.safetensors docs/lora/unseen.webp
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter

import daguerre
from daguerre.adapters import load_lora, with_adapters
from daguerre.data import EmojiDataset, EmojiMix
from daguerre.models.latent_diffusion import LatentDiffusion

SIZE = 128
PAPER = (24, 62, 140)
STYLE = "blueprint"
TRAINED = (
    "red apple", "banana", "pear", "carrot", "pizza", "birthday cake", "dog", "cat", "fish", "bird",
    "frog", "horse", "automobile", "bicycle", "house", "deciduous tree", "key", "guitar", "umbrella", "rocket",
)  # fmt: skip
UNSEEN = ("a strawberry", "a rabbit", "a butterfly", "a bus", "a cactus", "a trumpet")


def blueprint(image: Image.Image) -> Image.Image:
    """The edges of an image as white lines on blue paper."""
    channels = [channel.filter(ImageFilter.FIND_EDGES) for channel in image.filter(ImageFilter.GaussianBlur(1)).split()]
    edges = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2])
    edges.paste(0, (0, 0, SIZE, 2))  # the filter leaves the border as it was
    for border in ((0, 0, 2, SIZE), (SIZE - 2, 0, SIZE, SIZE), (0, SIZE - 2, SIZE, SIZE)):
        edges.paste(0, border)
    lines = edges.point(lambda value: min(255, 4 * value)).filter(ImageFilter.MaxFilter(3))
    return Image.composite(Image.new("RGB", image.size, "white"), Image.new("RGB", image.size, PAPER), lines)


def make_images(folder: Path) -> None:
    """Write the training images and their captions."""
    folder.mkdir(parents=True)
    dataset = EmojiDataset(mix=EmojiMix(recoloured=0, background=0, pair=0, centred=1, mirrored=0, other_name=0))
    for index, thing in enumerate(dataset.things):
        if thing.name in TRAINED:
            image = dataset.sample(index, np.random.default_rng(0)).image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            blueprint(image).save(folder / f"{thing.name}.png")
            article = "an" if thing.name[0] in "aeiou" else "a"
            (folder / f"{thing.name}.txt").write_text(f"{article} {thing.name}, {STYLE}")


def make_sheet(lora: Path, out: Path) -> None:
    """A row of images without the LoRA, one with it, and one with half its strength; none of the things is in the training images."""
    base = daguerre.load()
    assert isinstance(base, LatentDiffusion)
    rows = {"without": base, "0.5": with_adapters(base, [load_lora(lora).scaled(0.5)]), "1": with_adapters(base, [load_lora(lora)])}
    sheet = Image.new("RGB", (40 + SIZE * len(UNSEEN), SIZE * len(rows)), "white")
    for y, (label, model) in enumerate(rows.items()):
        ImageDraw.Draw(sheet).text((2, SIZE * y + SIZE // 2), label, fill="black")
        for x, thing in enumerate(UNSEEN):
            image = daguerre.generate(model, f"{thing}, {STYLE}", seed=1)[0].image
            sheet.paste(image, (40 + SIZE * x, SIZE * y))
    sheet.save(out, quality=85)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "images":
        make_images(Path(sys.argv[2]))
    else:
        make_sheet(Path(sys.argv[2]), Path(sys.argv[3]))
