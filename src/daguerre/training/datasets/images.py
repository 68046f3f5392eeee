"""Open the images of a recipe, and split off a validation part."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from daguerre.data import Batch, BatchLoader, Dataset, FolderDataset
from daguerre.data.catalog import open_dataset, print_summary
from daguerre.data.folders.items import digests_of
from daguerre.errors import DaguerreError
from daguerre.training.distributed.processes import rank
from daguerre.training.options.images import TrainingImageOptions

MAX_VALIDATION_IMAGES = 256  # whose loss the log has


@dataclass(frozen=True)
class ValidationBatches:
    """The same batches of images in each pass: every image once, of a folder at most `MAX_VALIDATION_IMAGES`, each batch of
    one size."""

    source: Dataset
    batch_size: int
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        source = self.source
        for part in validation_sample(source).parts_of_one_size() if isinstance(source, FolderDataset) else [source]:
            size = min(self.batch_size, len(part))
            batches = BatchLoader(part, size, self.seed)
            for first in range(0, len(part), size):
                yield batches.batch(first // size)[: len(part) - first]


def validation_batches(images: "TrainingImages", batch_size: int, seed: int) -> "ValidationBatches | tuple[()]":
    """The batches of the validation part; none if there is no such part."""
    return () if images.held_out is None else ValidationBatches(images.held_out, batch_size, seed)


def validation_sample(source: FolderDataset) -> FolderDataset:
    """At most `MAX_VALIDATION_IMAGES` images, by their content."""
    return source.rows(np.argsort(digests_of(source.items), kind="stable")[:MAX_VALIDATION_IMAGES])


class TrainingImages(NamedTuple):
    """The images to train on, and those kept out of training, if any."""

    trained: Dataset
    held_out: FolderDataset | None = None


def open_training_images(data: str, size: int, options: TrainingImageOptions, *, captioned: bool = False, **more: Any) -> TrainingImages:
    """The images of a directory or a built-in dataset as squares of `size` pixels; prints what a directory contains to stderr.

    captioned: images without a caption are refused. more: options of a `FolderDataset`.

    Raises:
        DaguerreError: there is no such directory, an image or caption is bad, the validation part would be empty or all, or `options` are
            not the default for rendered images.
    """
    source = open_dataset(data, size, captioned=captioned, **options.reading, **more)
    if not isinstance(source, FolderDataset):
        if options != type(options)():
            raise DaguerreError(
                f"The images of {data!r} are rendered as squares, new ones in each epoch; --crop, --mirror, --validation-fraction, "
                "--skip-bad and --shard-cache-size apply to image files. Remove them."
            )
        return TrainingImages(source)
    if rank() == 0:
        print_summary(source)
    if not options.validation_fraction:
        return TrainingImages(source)
    trained, held_out = source.split(options.validation_fraction)
    if rank() == 0:
        print(f"validation: {len(held_out)} of these images, chosen by a hash; training: {len(trained)}", file=sys.stderr)
    return TrainingImages(trained, held_out)
