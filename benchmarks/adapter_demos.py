"""The demonstrations of docs/train-adapters.md: their training images, their figures and their sheets of images.

    python -m benchmarks.adapter_demos images FOLDER        training images with captions: FOLDER/style, FOLDER/character, FOLDER/word
    python -m benchmarks.adapter_demos style LORA           a style of 20 emoji as white lines on blue
    python -m benchmarks.adapter_demos character LORA       a drawn character from 5 images
    python -m benchmarks.adapter_demos word EMBEDDING       a word for the thing of 5 images

The last three print figures as lines of JSON and write a sheet to `--out`. Features are those of the embedded CLIP. `--prompts` is the
number of known prompts for the R-precision, with and without the adapter.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

import daguerre
from daguerre.adapters import load_embedding, load_lora, with_adapters
from daguerre.data import EmojiDataset, EmojiMix, to_tensor
from daguerre.evaluation.clip_scorer import load_clip_scorer
from daguerre.evaluation.evaluate import candidate_scores, generate_set, prompt_features
from daguerre.evaluation.prompts_emoji import known_prompts
from daguerre.metrics import cosine, proportion, ranks, recall_at
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request
from daguerre.pipelines.images.grid import image_table

SIZE, SCALE = 128, 4  # the character is drawn four times larger, then reduced, which smooths the edges
PAPER, STYLE = (24, 62, 140), "blueprint"
STYLED = (
    "red apple", "banana", "pear", "carrot", "pizza", "birthday cake", "dog", "cat", "fish", "bird",
    "frog", "horse", "automobile", "bicycle", "house", "deciduous tree", "key", "guitar", "umbrella", "rocket",
)  # fmt: skip
UNSEEN = ("a strawberry", "a rabbit", "a butterfly", "a bus", "a cactus", "a trumpet")  # none of them in the style's images
CHARACTER_PROMPTS = ("a zorble.", "a zorble on a green background.", "a zorble to the left of a pizza.")
OTHERS = ("an alien.", "a robot.", "an owl.")  # which must stay as they are
WORD, WORD_THING = "blorp", "owl"
WORD_PROMPTS = ("a blorp.", "a blorp on a green background.", "a blorp to the left of a pizza.")
SEEDS = 4  # images for each similarity
BODY, DARK, ORANGE, INK = "#1fa39a", "#157a74", "#ff8a1f", "#26323a"


@dataclass(frozen=True)
class Pose:
    """Of the character. look: where the pupil is, (x, y) in −1…1. arms: the height of the hands, −1 down to 1 up."""

    caption: str
    background: str = "white"
    look: tuple[float, float] = (0, 0)
    arms: tuple[float, float] = (-0.6, -0.6)
    mouth: str = "smile"
    sleeping: bool = False


POSES = (
    Pose("a zorble."),
    Pose("a zorble on a blue background.", "#55acee", (-0.8, 0), (0.9, -0.6), "open"),
    Pose("a zorble on a yellow background.", "#ffcc4d", (0, -0.8), (1, 1), "open"),
    Pose("a zorble on a pink background.", "#f4abba", (0.8, 0.3), (-0.6, 0.2), "round"),
    Pose("a zorble.", "white", (0, 0), (-0.9, -0.9), "line", sleeping=True),
)


def draw(pose: Pose) -> Image.Image:
    """The character in a pose, an image of SIZE × SIZE pixels."""
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), pose.background)
    canvas = ImageDraw.Draw(image)

    def box(x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        return SCALE * (x - rx), SCALE * (y - ry), SCALE * (x + rx), SCALE * (y + ry)

    def line(points: list[tuple[float, float]], color: str, width: float) -> None:
        canvas.line([(SCALE * x, SCALE * y) for x, y in points], fill=color, width=round(SCALE * width), joint="curve")

    for side in (-1, 1):
        line([(64 + 12 * side, 34), (64 + 20 * side, 14)], ORANGE, 4)
        canvas.ellipse(box(64 + 21 * side, 13, 7, 7), fill=ORANGE)
        canvas.ellipse(box(64 + 16 * side, 115, 13, 7), fill=ORANGE)
    for side, height in zip((-1, 1), pose.arms, strict=True):
        hand = 64 + 50 * side, 78 - 24 * height
        line([(64 + 30 * side, 80), hand], DARK, 8)
        canvas.ellipse(box(*hand, 7, 7), fill=DARK)
    canvas.ellipse(box(64, 76, 38, 38), fill=BODY)
    canvas.ellipse(box(64, 56, 31, 31), fill=BODY)
    canvas.ellipse(box(64, 98, 22, 12), fill="#9fe3da")
    if pose.sleeping:
        canvas.arc(box(64, 50, 18, 12), 10, 170, fill=INK, width=4 * SCALE)
    else:
        canvas.ellipse(box(64, 54, 20, 20), fill="white")
        x, y = pose.look
        canvas.ellipse(box(64 + 9 * x, 54 + 9 * y, 10, 10), fill=INK)
        canvas.ellipse(box(67 + 9 * x, 50 + 9 * y, 3, 3), fill="white")
    match pose.mouth:
        case "smile":
            canvas.arc(box(64, 78, 12, 8), 10, 170, fill=INK, width=3 * SCALE)
        case "open":
            canvas.chord(box(64, 78, 12, 9), 0, 180, fill=INK)
        case "round":
            canvas.ellipse(box(64, 82, 5, 6), fill=INK)
        case _:
            line([(57, 82), (71, 82)], INK, 3)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def blueprint(image: Image.Image) -> Image.Image:
    """The edges of an image as white lines on blue paper."""
    channels = [channel.filter(ImageFilter.FIND_EDGES) for channel in image.filter(ImageFilter.GaussianBlur(1)).split()]
    edges = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2])
    inside = edges.crop((2, 2, SIZE - 2, SIZE - 2))  # the filter leaves the border as it was
    edges = Image.new("L", edges.size)
    edges.paste(inside, (2, 2))
    lines = edges.point([min(255, 4 * value) for value in range(256)]).filter(ImageFilter.MaxFilter(3))
    return Image.composite(Image.new("RGB", image.size, "white"), Image.new("RGB", image.size, PAPER), lines)


def emoji(name: str, number: int = 0, **mix: float) -> Image.Image:
    """An image of one emoji, alone; `mix`: see `EmojiMix`."""
    dataset = EmojiDataset(SIZE, mix=EmojiMix(**{"recoloured": 0, "background": 0, "pair": 0, "other_name": 0, **mix}))
    index = next(i for i, thing in enumerate(dataset.things) if thing.name == name)
    return dataset.sample(index, np.random.default_rng(number)).image.convert("RGB")


def style_images() -> list[tuple[Image.Image, str]]:
    """The 20 training images of the style, with captions."""
    return [(blueprint(emoji(name, centred=1)), f"{'an' if name[0] in 'aeiou' else 'a'} {name}, {STYLE}") for name in STYLED]


def word_images() -> list[Image.Image]:
    """The five images of the thing that the word names: of several sizes and positions, some mirrored."""
    return [emoji(WORD_THING, number, centred=0.2, mirrored=0.5) for number in range(5)]


def write_images(folder: Path) -> None:
    """The training images of all three demonstrations."""
    sets = {"style": style_images(), "character": [(draw(pose), pose.caption) for pose in POSES], "word": [(x, "") for x in word_images()]}
    for name, images in sets.items():
        (folder / name).mkdir(parents=True)
        for number, (image, caption) in enumerate(images, 1):
            image.save(folder / name / f"{number:02d}.png")
            if caption:
                (folder / name / f"{number:02d}.txt").write_text(caption)


def features(images: Sequence[Image.Image]) -> Tensor:
    """CLIP features (N, P) of images."""
    return load_clip_scorer().embed_images(torch.stack([to_tensor(image) for image in images]))


def similarity(images: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """The mean cosine of the features of images and of others."""
    return cosine(features(images), features(others)).mean().item()


def similarity_among(images: Sequence[Image.Image]) -> float:
    """The mean cosine of the features of two different images."""
    found = features(images)
    return cosine(found, found)[~torch.eye(len(found), dtype=torch.bool)].mean().item()


def sampled(model: LatentDiffusion, prompt: str, count: int = SEEDS) -> list[Image.Image]:
    return [each.image for each in daguerre.generate(model, prompt, num_images=count, seed=100)]


def off_style(images: Sequence[Image.Image]) -> float:
    """The mean distance of pixels, in levels of 0 to 255, to the nearest mixture of the colour of the paper and white."""
    pixels = np.stack([np.asarray(image, dtype=np.float64) for image in images]).reshape(-1, 3)
    start, line = np.array(PAPER), 255 - np.array(PAPER)
    share = ((pixels - start) @ line / (line @ line)).clip(0, 1)
    return float(np.linalg.norm(pixels - start - share[:, None] * line, axis=1).mean())


def recognised(model: LatentDiffusion, count: int, request: Request | None = None) -> str:
    """R-precision: how many of `count` known names the CLIP recognises first among all names, with its 95 % interval.

    request: the settings of the images. Default: those of the model, and seed 0.
    """
    scorer, prompts = load_clip_scorer(), known_prompts(EmojiDataset(SIZE, split="all"), count, 0)
    images = generate_set(model, [prompt.prompt for prompt in prompts], request or Request(seed=0)).images
    scores = candidate_scores(scorer, images, [prompt_features(scorer, prompt) for prompt in prompts])
    found = proportion(recall_at(ranks(scores, torch.zeros(count, dtype=torch.long)), 1))
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}) of {count}"


def sheet(rows: dict[str, list[Image.Image]], prompts: Sequence[str], path: Path, first: Sequence[Image.Image] = ()) -> None:
    """A row of images, one for each prompt, of each model, below a row of training images if given."""
    images = [list(first)] * bool(first) + [*rows.values()]
    captions = [["" for _ in first]] * bool(first) + [list(prompts)] * len(rows)
    image_table(images, captions, rows=["training images"] * bool(first) + [*rows]).image.save(path, quality=85)


def report(**values: object) -> None:
    print(json.dumps(values), flush=True)


def style(models: dict[str, LatentDiffusion], out: Path) -> None:
    """The figures and the sheet of the style."""
    prompts = [f"{thing}, {STYLE}" for thing in UNSEEN]
    rows = {name: [sampled(model, prompt, 1)[0] for prompt in prompts] for name, model in models.items()}
    sheet(rows, prompts, out)
    for name, images in {"training images": [image for image, _ in style_images()], **rows}.items():
        report(images=name, off_style=off_style(images))


def subject(models: dict[str, LatentDiffusion], images: Sequence[Image.Image], prompts: Sequence[str], out: Path, known: int = 0) -> None:
    """The figures and the sheet of a new thing, which the first prompt names; `known`: number of prompts for the R-precision."""
    report(images="training images", similarity=similarity_among(images))
    rows = {}
    for name, model in models.items():
        many = sampled(model, prompts[0])
        report(images=name, similarity=similarity(many, images))
        rows[name] = [many[0], *(sampled(model, prompt, 1)[0] for prompt in prompts[1:])]
    sheet(rows, prompts, out, images)
    for name, model in models.items() if known else ():
        report(images=name, recognised=recognised(model, known))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "style", "character", "word"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, default=Path("sheet.webp"))
    parser.add_argument("--prompts", type=int, default=100)
    given = parser.parse_args()
    if given.what == "images":
        write_images(given.path)
        return
    base = daguerre.load()
    assert isinstance(base, LatentDiffusion)
    adapter = load_embedding(given.path) if given.what == "word" else load_lora(given.path)
    models = {"without": base, "with": with_adapters(base, [adapter])}
    match given.what:
        case "style":
            style(models, given.out)
        case "character":
            subject(models, [draw(pose) for pose in POSES], (*CHARACTER_PROMPTS, *OTHERS), given.out, given.prompts)
        case _:
            subject(models, word_images(), WORD_PROMPTS, given.out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
