"""Images with the name of their class as caption: folders with a subfolder per class, and the built-in datasets by kind."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from daguerre.data import Dataset, EmojiDataset, EmojiMix, FolderDataset
from daguerre.data.dataset import Sample, Subset
from daguerre.data.emoji.faces import FACES
from daguerre.errors import DaguerreError, join_names
from daguerre.training.datasets.codes import class_names, shapes_by_class
from daguerre.training.datasets.images import open_training_images, validation_sample
from daguerre.training.options.images import TrainingImageOptions

MIN_CLASS_IMAGES = 2  # a class of a folder with fewer is more likely a mistake than a class


class LabelledImages(NamedTuple):
    """Images to train on, whose captions are the names of their classes; all class names, sorted; and images kept out, if any."""

    trained: Dataset
    names: tuple[str, ...]
    held_out: Dataset | None = None


def open_labelled(data: str, size: int, options: TrainingImageOptions, **more: Any) -> LabelledImages:
    """The images of a directory, labelled by subfolder or metadata file, or of a built-in dataset: shapes by shape, emoji by Unicode's
    subgroup, emoji faces by name. Arguments as in `open_training_images`.

    Raises:
        DaguerreError: as `open_training_images`; or an image has no class, or a class has a single image.
    """
    trained, held_out = open_training_images(data, size, options, **more)
    if isinstance(trained, FolderDataset):
        names = tuple(trained.labels)
        check_classes(data, trained)
        return LabelledImages(_labelled(trained), names, None if held_out is None else _labelled(validation_sample(held_out)))
    if data == "emoji":
        return _emoji_by_subgroup(size)
    if data == "emoji-faces":
        return LabelledImages(trained, tuple(sorted(FACES)))
    shapes = shapes_by_class(size)
    return LabelledImages(shapes, class_names(shapes))


def check_classes(data: str, images: FolderDataset) -> None:
    """Raise DaguerreError if an image has no class, or a class has a single image."""
    counts = images.label_counts
    if missing := counts.pop("", 0):
        raise DaguerreError(
            f"{missing} of the {len(images)} images in '{data}' have no class: put those of each class into a subfolder with its name, "
            "or train with --condition none."
        )
    if single := [name for name, count in counts.items() if count < MIN_CLASS_IMAGES]:
        raise DaguerreError(
            f"{len(single)} of the {len(counts)} classes in '{data}' have a single image ({join_names(single)}); add images to them or "
            "remove them, or train with --condition none."
        )


def _labelled(images: FolderDataset) -> Subset:
    """The same images with their labels as captions."""

    def sample(index: int, rng: np.random.Generator) -> Sample:
        found = images.sample(index, rng)
        return replace(found, caption=found.label)

    key = f"classes of {images.key}{images.label_key}"
    return Subset(images.size, key, sample, range(len(images)), False, images.shards, images.fetch_shard)


def _emoji_by_subgroup(size: int) -> LabelledImages:
    """Single emoji on white, with Unicode's subgroup as caption, such as "food-fruit"."""
    emoji = EmojiDataset(size, mix=EmojiMix(recoloured=0, background=0, pair=0))

    def sample(index: int, rng: np.random.Generator) -> Sample:
        return replace(emoji.sample(index, rng), caption=emoji.things[index].subgroup)

    images = Subset(size, f"subgroups of {emoji.key}", sample, range(len(emoji)))
    return LabelledImages(images, tuple(sorted({thing.subgroup for thing in emoji.things})))
