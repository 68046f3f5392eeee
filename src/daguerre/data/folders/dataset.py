"""A folder of images with captions, as a dataset; `files` says where captions come from and what is left out.

All files are checked when the dataset is opened, so that training does not stop at image 40,000.
"""

import copy
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from daguerre.data.dataset import Sample
from daguerre.data.fitting import CROP_NAMES, CropMode, aspect_ratio_bucket, fit_image
from daguerre.data.folders.files import (
    ImageEntry,
    Listing,
    class_label,
    count_repeats,
    describe_unused,
    file_digest,
    find_entries,
    list_files,
)
from daguerre.data.folders.items import FolderItem, ItemColumns, columns_of, digests_of
from daguerre.data.images import image_size, open_image
from daguerre.errors import DaguerreError, join_names
from daguerre.limits import MAX_PIXELS


class FolderDataset:
    """The images of a folder as squares of `size` pixels, or with `crop` "bucket" as rectangles of about that many pixels.

    `crop`: see `fitting.CropMode`. `mirror`: a random half of the samples is mirrored. `bucket_step`: the sides of rectangles are multiples
    of it. If not `captioned`, missing captions are empty. `repeats`: images of a folder "10_red apple" occur 10 times, relative to those of
    the other folders. `skipped` lists (file, problem) of the images that `skip_bad` leaves out; `summary` describes what was found.

    Raises DaguerreError if the folder is missing or has no usable image, or, unless `skip_bad`, for the first image that is damaged, too
    large or without a caption.
    """

    rendered = False

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        crop: CropMode = "random",
        mirror: bool = False,
        bucket_step: int = 64,
        captioned: bool = True,
        skip_bad: bool = False,
        repeats: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        if size < 1:
            raise DaguerreError(f"size is {size}; it must be 1 or more.")
        self.folder, self.size, self.mirror, self.max_pixels = Path(folder), size, mirror, max_pixels
        self.crop: CropMode = crop
        self.bucket_step, self.captioned = bucket_step, captioned
        self.items, found = self._find(skip_bad, repeats)
        self.summary = [*found, _crop_summary(self._columns, crop, mirror)]

    def _find(self, skip_bad: bool, repeats: bool) -> tuple[Sequence[FolderItem], list[str]]:
        """The images, and lines about what was found. Sets `skipped`."""
        listing = list_files(self.folder)
        entries = find_entries(self.folder, listing)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._check, entries))
        self.skipped = [(entry.path, entry.problem) for entry in entries if entry.problem]
        if self.skipped and not skip_bad:
            more = f" {len(self.skipped) - 1} more of {len(entries)} images have problems." if len(self.skipped) > 1 else ""
            raise DaguerreError(f"{self.skipped[0][1]}{more} Fix them, or leave them out with --skip-bad.")
        usable = [entry for entry in entries if not entry.problem]
        if not usable:
            raise DaguerreError(f"None of the {len(entries)} images in {self.folder} is usable. The first problem: {self.skipped[0][1]}")
        times = count_repeats(usable) if repeats else {}
        repeated = [entry for entry in usable for _ in range(times.get(entry.path.parent, 1))]
        buckets = {entry.path: self._bucket(entry.size) for entry in usable}
        items = [
            FolderItem(entry.path, entry.caption or "", class_label(entry, self.folder), entry.digest, buckets[entry.path])
            for entry in repeated
        ]
        return items, _summary(self.folder, usable, listing, times, len(self.skipped), self.captioned)

    @property
    def key(self) -> str:
        described = [(self.relative_path(item).as_posix(), item.digest, item.caption) for item in self.items]
        return self._key(hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16])

    def _key(self, digest: str) -> str:
        """The key of images with this digest."""
        sizes = f" {self._columns.buckets[0]}" if self.crop == "bucket" else ""
        return f"images and captions {digest} size {self.size} crop {self.crop}{sizes}{' mirror' if self.mirror else ''}"

    @property
    def _columns(self) -> ItemColumns:
        return columns_of(self.items)

    @property
    def buckets(self) -> np.ndarray:
        """For each index, the number of its size (height, width) among the sizes of all images: the images of one batch have one size."""
        return self._columns.buckets[1]

    @property
    def shards(self) -> np.ndarray | None:
        """For each index, the number of the file that it is read from, if many images are in one file: see `BatchOrder`."""
        return None

    @property
    def fetch_shard(self) -> Callable[[int], None] | None:
        """Fetches the file of a number of `shards`, if they are fetched when they are needed."""
        return None

    @property
    def labels(self) -> list[str]:
        """The class names of all images, sorted; empty if no image has one."""
        return sorted(self.label_counts.keys() - {""})

    @property
    def label_counts(self) -> Counter[str]:
        """The number of images of each class; "" is no class."""
        return self._columns.label_counts

    @property
    def label_key(self) -> str:
        """Changes when the class of an image does."""
        return f" {[item.label for item in self.items]}"

    def relative_path(self, item: FolderItem) -> Path:
        """The path of an image in the folder: its maps have the same one in theirs."""
        return item.path.relative_to(self.folder if item.member is None else item.member.file)

    @property
    def relative_paths(self) -> Sequence[Path]:
        """Of all images, in their order."""
        return [self.relative_path(item) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        item = self.items[index]
        # A long image needs more than the target's shorter side, so that the other side is large enough, too.
        image = item.open(min_side=max(item.size), max_pixels=self.max_pixels)
        return Sample(self._fit(image, item.size, rng), item.caption, label=item.label)

    def fit(
        self, image: Image.Image, index: int, rng: np.random.Generator, resample: Image.Resampling = Image.Resampling.LANCZOS
    ) -> Image.Image:
        """An image, or a map of it, as a sample of this dataset has it: with equal generators, equally cropped and mirrored."""
        return self._fit(image, self.items[index].size, rng, resample)

    def _fit(
        self, image: Image.Image, size: tuple[int, int], rng: np.random.Generator, resample: Image.Resampling = Image.Resampling.LANCZOS
    ) -> Image.Image:
        position = rng.random() if self.crop in ("random", "bucket") else 0.5
        fitted = fit_image(image, size, self.crop, position, resample)
        return ImageOps.mirror(fitted) if self.mirror and rng.random() < 0.5 else fitted

    def captions(self, count: int, seed: int) -> list[str]:
        order = np.random.default_rng(seed).permutation(len(self))
        return [self.items[int(order[i % len(self)])].caption for i in range(count)]

    def part(self, items: Iterable[FolderItem]) -> "FolderDataset":
        """The same dataset with only these of its items."""
        part = copy.copy(self)
        part.items = list(items)
        return part

    def rows(self, indices: np.ndarray) -> "FolderDataset":
        """The same dataset with only the items of these indices."""
        return self.part(self.items[index] for index in indices)

    def parts_of_one_size(self) -> "list[FolderDataset]":
        """A dataset for each size (height, width): without buckets, this one alone."""
        sizes, buckets = self._columns.buckets
        return [self.rows(np.flatnonzero(buckets == number)) for number in range(len(sizes))]

    def split(self, fraction: float) -> "tuple[FolderDataset, FolderDataset]":
        """The part for training, and about this fraction of the images for validation.

        A hash of the file's content decides, so an image stays in its part when others are added or renamed, and copies are together.
        Raises DaguerreError if a part would be empty.
        """
        is_held_out = digests_of(self.items) / 2**64 < fraction
        trained, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
        if not len(held_out) or not len(trained):
            raise DaguerreError(
                f"A validation fraction of {fraction:g} leaves {len(trained)} of {len(self)} images for training and {len(held_out)} for "
                f"validation; both need at least one. Use a {'larger' if len(trained) else 'smaller'} fraction, or more images."
            )
        return self.rows(trained), self.rows(held_out)

    def _bucket(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of the samples of an image of a size (height, width) that was measured for buckets."""
        return aspect_ratio_bucket(size, self.size, self.bucket_step) if self.crop == "bucket" else (self.size, self.size)

    def _check(self, entry: ImageEntry) -> None:
        """Set the entry's digest and problem; only decoding shows that a file is complete."""
        if self.captioned and not (entry.caption and entry.caption.strip()):
            entry.problem = f"{entry.path} has no caption; write it in {entry.expected}."
            return
        try:
            open_image(entry.path, min_side=self.size, max_pixels=self.max_pixels)
            entry.size = image_size(entry.path) if self.crop == "bucket" else (self.size, self.size)
            entry.digest = file_digest(entry.path)
        except DaguerreError as error:
            entry.problem = str(error)


def _crop_summary(columns: ItemColumns, crop: CropMode, mirror: bool) -> str:
    """One line: how the images get their sizes."""
    sizes, buckets = columns.buckets
    widths = ", ".join(
        f"{width}×{height} ({count})" if len(sizes) > 1 else f"{width}×{height}"
        for (height, width), count in zip(sizes, np.bincount(buckets), strict=True)
    )
    return f"crops: {CROP_NAMES[crop]}, {widths} pixels{', a random half mirrored' if mirror else ''}"


def _summary(
    folder: Path, entries: list[ImageEntry], listing: Listing, times: Mapping[Path, int], skipped: int, captioned: bool
) -> list[str]:
    """Lines about what was found in a folder, and what was not used."""
    paths = {entry.path for entry in entries}
    lines = [f"images: {len(paths)} in {folder}" + (f"; {skipped} skipped" if skipped else "")]
    if captioned:
        sources = Counter(entry.source for entry in entries)
        classes = sorted({entry.caption or "" for entry in entries if entry.source == "folder names"})
        named = f" ({join_names(map(repr, classes))})" if classes else ""
        lines.append("captions: " + ", ".join(f"{count} from {name}" for name, count in sources.items()) + named)
    if len(set(times.values())) > 1:
        lines.append("repeats: " + join_names(f"{path.name} {count}×" for path, count in times.items()))
    if listing.windows_text:
        lines.append(f"read as Windows-1252, not UTF-8; check the letters: {join_names(map(str, listing.windows_text))}")
    if listing.left_out:
        lines.append(f"folders left out: {join_names(map(str, listing.left_out))}")
    if unused := describe_unused(listing):
        lines.append(unused.strip())
    return lines
