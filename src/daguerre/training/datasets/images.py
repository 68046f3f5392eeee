"""Open the images of a recipe, and split off a validation part."""

import sys
from typing import Any, NamedTuple

from daguerre.data import Dataset, FolderDataset
from daguerre.data.catalog import open_dataset, print_summary
from daguerre.errors import DaguerreError
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.processes import rank


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
                f"The images of {data!r} are rendered as squares, new ones in each epoch; --crop, --mirror, --validation-fraction and "
                "--skip-bad apply to a directory of images. Remove them."
            )
        return TrainingImages(source)
    if rank() == 0:
        print_summary(source)
    if not options.validation_fraction:
        return TrainingImages(source)
    trained, held_out = source.split(options.validation_fraction)
    if rank() == 0:
        print(f"validation: {len(held_out)} of these images, by their content; training: {len(trained)}", file=sys.stderr)
    return TrainingImages(trained, held_out)
