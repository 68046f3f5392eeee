"""Datasets by name: the built-in ones, or a directory of images."""

import sys
from typing import Literal

from daguerre.atomic_io import expand_user
from daguerre.data.dataset import Dataset
from daguerre.data.emoji.dataset import EmojiDataset
from daguerre.data.folder import FolderDataset
from daguerre.data.shapes import ShapesDataset
from daguerre.errors import DaguerreError

BUILT_IN_DATASETS = {"shapes": ShapesDataset, "emoji": EmojiDataset}


def open_dataset(
    data: str, size: int, *, skip_bad: bool = False, crop: Literal["random", "center"] = "random", captioned: bool = False
) -> Dataset:
    """Images of `size` × `size` pixels, from a built-in dataset or a directory. Prints what a directory contains to stderr.

    Raises:
        DaguerreError: there is no such directory, it has no images, or, if `captioned`, an image has no caption.
    """
    if data in BUILT_IN_DATASETS:
        return BUILT_IN_DATASETS[data](size)
    folder = expand_user(data)
    if not folder.is_dir():
        raise DaguerreError(f"There is no directory '{data}'; give a directory of images, or {' or '.join(BUILT_IN_DATASETS)}.")
    source = FolderDataset(folder, size, crop=crop, captioned=captioned, skip_bad=skip_bad)
    print_summary(source)
    return source


def print_summary(source: FolderDataset) -> None:
    """Print what was found in a folder, and the files that `skip_bad` skips, to stderr."""
    for _, problem in source.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    print(*source.summary, sep="\n", file=sys.stderr)
