"""How well latent diffusion models trained here do their tasks on images that they have not seen, against trivial baselines.

    python -m benchmarks.ldm_tasks images FOLDER                     # emoji as two folders, FOLDER/train and FOLDER/test, and their maps
    daguerre train ldm --first-stage src/daguerre/assets/emoji --data FOLDER/train --condition grey --prediction v --out runs/grey
    python -m benchmarks.ldm_tasks measure runs/grey/model --data FOLDER

The test images are those of other things than the training images. Every measure is a difference from the original, so less is better:

    features   1 − cosine of the embeddings of the embedded CLIP
    pixels     mean absolute difference of 8-bit values: of all, for `masked` in the hole, for `grey` of the colours (Cb and Cr)
    regions    for `layout`, which leaves the colours open: 1 − intersection over union of what is not background

Each has the model's and the baseline's mean, and their difference with a bootstrap interval over images: below 0 the model is better.

    low-res      bicubic interpolation
    masked       the hole in the mean colour of the rest
    grey         every pixel in the mean colour of the training images
    map          the training image with the nearest map; `--map semantic --maps FOLDER/train-maps` has a class for each of 27 colours
    clip-image   the training image with the nearest embedding
    layout       the training image with the nearest boxes; images are those of `--data shapes`, unseen ones from another seed
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from daguerre.conditioning.class_map_image import ConcatConditioner, ImageConditioner, LayoutConditioner
from daguerre.data import Dataset, EmojiDataset, EmojiMix, Sample, to_tensor
from daguerre.data.catalog import open_dataset
from daguerre.data.condition_maps import edges
from daguerre.data.dataset import Subset, is_held_out
from daguerre.evaluation.clip_scorer import ClipScorer, load_clip_scorer
from daguerre.metrics import bootstrap
from daguerre.pipelines import generate
from daguerre.pipelines.images.grid import image_table
from daguerre.pipelines.images.preprocessors import PREPROCESSORS
from daguerre.pipelines.planners.colorize import with_colours_of
from daguerre.pipelines.tasks import Inpaint
from daguerre.training.condition_preview import ConditionExample, draw_boxes, find_examples
from daguerre.training.datasets.conditions import with_condition_image, with_layouts
from daguerre.training.options.ldm import LDMRecipe
from daguerre.weights import load_diffusion

SIDE, SAMPLES_EACH = 64, 4
SHEET_ROWS = 8
SHAPES_IMAGES = 6000  # that a layout is compared with
FOREGROUND = 40  # least difference of a channel from the background in 8-bit values


def write_images(folder: Path) -> None:
    """Write emoji: four images of each of nine in ten things to train on, some recoloured or on a background, and one of each other."""
    emoji = EmojiDataset(SIDE, mix=EmojiMix(recoloured=0.2, background=0.2, pair=0))
    plain = EmojiDataset(SIDE, mix=EmojiMix(recoloured=0, background=0, pair=0, centred=1))
    for index, thing in enumerate(emoji.things):
        tested = is_held_out("ldm task", thing.base)
        source, count = (plain, 1) if tested else (emoji, SAMPLES_EACH)
        for number in range(count):
            path = folder / ("test" if tested else "train") / f"{index:04d}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = source.sample(index, np.random.default_rng([index, number])).image
            image.save(path)
            maps = path.parent.with_name(f"{path.parent.name}-maps")
            maps.mkdir(exist_ok=True)
            colour_classes(image).save(maps / path.name)


def colour_classes(image: Image.Image) -> Image.Image:
    """A map of classes: the nearest of three levels of each channel, without single pixels of other classes."""
    levels = image.convert("RGB").point([round(value / 127.5) * 127 for value in range(256)] * 3)
    return levels.filter(ImageFilter.ModeFilter(5))


@dataclass
class Baseline:
    """A trivial method for the task of a conditioner. kind: of the maps, if it takes maps."""

    conditioner: object
    train: Dataset
    scorer: ClipScorer
    kind: str

    def of(self, example: ConditionExample) -> Image.Image:
        """What the method gives for an example."""
        original, task = example.original, getattr(self.conditioner, "kind", "")
        if task == "low-res":
            return example.task.input_images["image"].pixels.resize(original.size, Image.Resampling.BICUBIC)
        if task == "masked":
            hole, filled = hole_of(example), original.copy()
            mean = np.asarray(original)[~hole].mean(0) if (~hole).any() else np.full(3, 127)
            filled.paste(tuple(int(value) for value in mean.round()), (0, 0), Image.fromarray(hole))
            return filled
        if task == "grey":
            return with_colours_of(original.convert("L"), Image.new("RGB", original.size, self.mean_colour))
        wanted = self.scorer.embed_images(x_of([original])) if self.by_embedding else x_of([example.shown]).flatten(1)
        return images_of(self.train)[int(torch.cdist(wanted, self.keys).argmin())]

    @property
    def by_embedding(self) -> bool:
        return isinstance(self.conditioner, ImageConditioner)

    @cached_property
    def mean_colour(self) -> tuple[int, ...]:
        """Of all training images."""
        mean = np.mean([np.asarray(image).mean((0, 1)) for image in images_of(self.train)], axis=0)
        return tuple(int(value) for value in mean.round())

    @cached_property
    def keys(self) -> Tensor:
        """What the nearest training image is looked for by, (N, D)."""
        if isinstance(self.conditioner, LayoutConditioner):
            return x_of([draw_boxes(sample.caption, self.train.size) for sample in samples_of(self.train)]).flatten(1)
        if self.by_embedding:
            return self.scorer.embed_images(x_of(images_of(self.train)))
        transform = {"edges": edges, "semantic": colour_classes, **PREPROCESSORS}[self.kind]
        return x_of([transform(image) for image in images_of(self.train)]).flatten(1)


_samples: dict[str, list[Sample]] = {}


def samples_of(source: Dataset) -> list[Sample]:
    """All samples of a dataset, read once."""
    if source.key not in _samples:
        _samples[source.key] = [source.sample(index, np.random.default_rng(0)) for index in range(len(source))]
    return _samples[source.key]


def images_of(source: Dataset) -> list[Image.Image]:
    """All images of a dataset."""
    return [sample.image for sample in samples_of(source)]


def shapes_of(size: int, seed: int, count: int) -> Dataset:
    """`count` images of the shapes dataset with their layouts as captions."""
    shapes, _ = with_layouts(LDMRecipe(Path(), "shapes", condition="layout"), open_dataset("shapes", size))

    def sample(index: int, _rng: np.random.Generator) -> Sample:
        rng = np.random.default_rng([seed, index])
        return shapes.sample(int(rng.integers(len(shapes))), rng)

    return Subset(size, f"{shapes.key} seed {seed}", sample, range(count))


def x_of(images: Sequence[Image.Image]) -> Tensor:
    """Images as (B, 3, H, W) in [−1, 1]."""
    return torch.stack([to_tensor(image) for image in images])


def hole_of(example: ConditionExample) -> np.ndarray:
    """The hole of an inpainting example, (H, W) bool."""
    assert isinstance(example.task, Inpaint)
    assert example.task.mask is not None
    return np.asarray(example.task.mask.pixels.convert("L")) > 0


def pixel_error(example: ConditionExample, image: Image.Image, *, colours: bool) -> float:
    """The mean absolute difference from the original in 8-bit values, in the hole of an inpainting example; of the colours alone."""
    mode = "YCbCr" if colours else "RGB"
    a, b = (np.asarray(each.convert(mode)).astype(float) for each in (image, example.original))
    error = np.abs(a - b)[..., 1:].mean(-1) if colours else np.abs(a - b).mean(-1)
    return float(error[hole_of(example)].mean() if isinstance(example.task, Inpaint) else error.mean())


def foreground(image: Image.Image) -> np.ndarray:
    """What differs from the most frequent colour of the edge, (H, W) bool."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return (np.abs(pixels - np.median(edge, axis=0)) > FOREGROUND).any(-1)


def region_error(example: ConditionExample, image: Image.Image) -> float:
    """1 − intersection over union of the foregrounds."""
    a, b = foreground(image), foreground(example.original)
    return 1 - float((a & b).sum() / max((a | b).sum(), 1))


def measure(folder: Path, data: Path, count: int, steps: int, kind: str, sheet: Path | None) -> None:
    """Print the table of one model, and write a sheet of some images: condition, baseline, model, original."""
    model, scorer = load_diffusion(folder), load_clip_scorer()
    conditioner = model.conditioner
    if layout := isinstance(conditioner, LayoutConditioner):
        train, test = (shapes_of(model.sample_size, *each) for each in ((0, SHAPES_IMAGES), (1, count)))
    else:
        train, test = (open_dataset(str(data / part), model.sample_size, crop="center") for part in ("train", "test"))
    source = test
    name = conditioner.kind if isinstance(conditioner, ConcatConditioner) else "layout" if layout else "clip-image"
    if isinstance(conditioner, ConcatConditioner) and conditioner.kind in ("masked", "map", "semantic"):
        condition, maps = ("masked", None) if conditioner.kind == "masked" else ("map", data / "test-maps" if kind == "semantic" else None)
        recipe = LDMRecipe(Path(), str(data), condition=condition, map=kind, maps=maps)  # type: ignore[arg-type]
        source, _ = with_condition_image(recipe, test)
    examples = find_examples(conditioner, source, count)
    results = [generate(model, each.request(steps=steps))[0].image for each in examples]
    baseline = Baseline(conditioner, train, scorer, kind)
    trivial = [baseline.of(each) for each in examples]
    truth = scorer.embed_images(x_of([each.original for each in examples]))
    print(f"| {name}, {len(examples)} images | model | baseline | model − baseline |\n| --- | --- | --- | --- |")
    own, other = (1 - (scorer.embed_images(x_of(images)) * truth).sum(1) for images in (results, trivial))
    print(f"| features | {own.mean():.3f} | {other.mean():.3f} | {bootstrap(own - other)} |")
    error = region_error if layout else partial(pixel_error, colours=name == "grey")
    own, other = (torch.tensor([error(each, image) for each, image in zip(examples, images, strict=True)]) for images in (results, trivial))
    print(f"| {'regions' if layout else 'pixels'} | {own.mean():.2f} | {other.mean():.2f} | {bootstrap(own - other)} |", flush=True)
    if sheet is not None:
        rows = [list(row) for row in zip([e.shown for e in examples], trivial, results, [e.original for e in examples], strict=True)]
        image_table(rows[:SHEET_ROWS], columns=("condition", "baseline", "model", "original")).image.save(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("images").add_argument("folder", type=Path)
    measuring = commands.add_parser("measure")
    measuring.add_argument("model", type=Path)
    measuring.add_argument("--data", type=Path, help="FOLDER; a layout model needs none")
    measuring.add_argument("--count", type=int, default=128)
    measuring.add_argument("--steps", type=int, default=20)
    measuring.add_argument("--map", default="edges")
    measuring.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    if options.command == "images":
        write_images(options.folder)
    else:
        measure(options.model, options.data, options.count, options.steps, options.map, options.sheet)


if __name__ == "__main__":
    main()
