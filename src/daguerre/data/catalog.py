"""Datasets by name: the built-in ones, a directory of images, or shards on a disk or at an address."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict, Unpack

from daguerre.atomic_io import expand_user, is_address
from daguerre.data.dataset import Dataset
from daguerre.data.emoji.dataset import EmojiDataset
from daguerre.data.emoji.faces import emoji_faces
from daguerre.data.fitting import CropMode
from daguerre.data.folders.dataset import FolderDataset
from daguerre.data.shapes import ShapesDataset
from daguerre.data.shards.dataset import ShardDataset
from daguerre.data.shards.index import shard_files
from daguerre.errors import DaguerreError


class FolderOptions(TypedDict, total=False):
    """Options of a `FolderDataset`."""

    skip_bad: bool
    crop: CropMode
    mirror: bool
    bucket_step: int
    repeats: bool


BUILT_IN_DATASETS: Mapping[str, Callable[[int], Dataset]] = {"shapes": ShapesDataset, "emoji": EmojiDataset, "emoji-faces": emoji_faces}


def open_dataset(
    data: str, size: int, *, captioned: bool = False, shard_cache_size: float | None = None, **options: Unpack[FolderOptions]
) -> Dataset:
    """Images of `size` × `size` pixels, from a built-in dataset or as `open_image_files`; the `options` apply only to the latter.

    Raises:
        DaguerreError: there is no such directory, it has no images, or, if `captioned`, an image has no caption.
    """
    if data in BUILT_IN_DATASETS:
        return BUILT_IN_DATASETS[data](size)
    if not is_address(data) and not expand_user(data).is_dir() and not shard_files(data):
        raise DaguerreError(f"There is no directory '{data}'; give a directory of images, or {' or '.join(BUILT_IN_DATASETS)}.")
    return open_image_files(data, size, captioned=captioned, shard_cache_size=shard_cache_size, **options)


def open_image_files(
    data: str | Path, size: int, *, captioned: bool = False, shard_cache_size: float | None = None, **options: Unpack[FolderOptions]
) -> FolderDataset:
    """The images of a directory, or of the shards that a directory, a pattern or an address names.

    shard_cache_size: largest size of all shards that are kept after they were fetched from an address, in GB. Errors as in
    `FolderDataset` and `ShardDataset`.
    """
    if is_address(data):
        return ShardDataset(data, size, captioned=captioned, shard_cache_size=shard_cache_size, **options)
    if shard_cache_size is not None:
        raise DaguerreError(
            f"--shard-cache-size applies to shards that are fetched from an address; '{data}' is not an address. Leave out "
            "--shard-cache-size, or give an address such as https://host/path/."
        )
    if shard_files(data):
        return ShardDataset(data, size, captioned=captioned, **options)
    return FolderDataset(expand_user(data), size, captioned=captioned, **options)


def print_summary(source: FolderDataset) -> None:
    """Print what was found in a folder, and the files that `skip_bad` skips, to stderr."""
    for _, problem in source.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    print(*source.summary, sep="\n", file=sys.stderr)
