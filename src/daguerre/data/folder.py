"""A folder of images with captions, as a dataset; `folder_files` says where captions come from and what is left out.

All files are checked when the dataset is opened, so that training does not stop at image 40,000.
"""

import copy
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from daguerre.data.dataset import Sample
from daguerre.data.fitting import CROP_NAMES, CropMode, aspect_ratio_bucket, fit_image
from daguerre.data.folder_files import (
    ImageEntry,
    Listing,
    class_label,
    count_repeats,
    describe_unused,
    file_digest,
    find_entries,
    list_files,
)
from daguerre.data.images import image_size, open_image
from daguerre.errors import DaguerreError, join_names
from daguerre.limits import MAX_PIXELS


class FolderItem(NamedTuple):
    """An image of a `FolderDataset`.

    label: the name of its class: "label" or "class" of a metadata file, else the name of its subfolder, else "". digest: of the file's
    bytes. size: (height, width) of its samples.
    """

    path: Path
    caption: str
    label: str
    digest: str
    size: tuple[int, int]


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
        self._captioned = captioned
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
        buckets = {entry.path: aspect_ratio_bucket(entry.size, size, bucket_step) if crop == "bucket" else (size, size) for entry in usable}
        self.items = [
            FolderItem(entry.path, entry.caption or "", class_label(entry, self.folder), entry.digest, buckets[entry.path])
            for entry in repeated
        ]
        self.summary = [
            *_summary(self.folder, usable, listing, times, len(self.skipped), captioned),
            _crop_summary(self.items, crop, mirror),
        ]

    @property
    def key(self) -> str:
        described = [(item.path.relative_to(self.folder).as_posix(), item.digest, item.caption) for item in self.items]
        digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
        sizes = f" {sorted({item.size for item in self.items})}" if self.crop == "bucket" else ""
        return f"images and captions {digest} size {self.size} crop {self.crop}{sizes}{' mirror' if self.mirror else ''}"

    @property
    def buckets(self) -> list[int]:
        """For each index, the number of its size (height, width) among the sizes of all images: the images of one batch have one size."""
        numbers = {size: number for number, size in enumerate(sorted({item.size for item in self.items}))}
        return [numbers[item.size] for item in self.items]

    @property
    def labels(self) -> list[str]:
        """The class names of all images, sorted; empty if no image has one."""
        return sorted({item.label for item in self.items} - {""})

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        item = self.items[index]
        # A long image needs more than the target's shorter side, so that the other side is large enough, too.
        image = open_image(item.path, min_side=max(item.size), max_pixels=self.max_pixels)
        return Sample(self.fit(image, index, rng), item.caption, label=item.label)

    def fit(
        self, image: Image.Image, index: int, rng: np.random.Generator, resample: Image.Resampling = Image.Resampling.LANCZOS
    ) -> Image.Image:
        """An image, or a map of it, as a sample of this dataset has it: with equal generators, equally cropped and mirrored."""
        position = rng.random() if self.crop in ("random", "bucket") else 0.5
        fitted = fit_image(image, self.items[index].size, self.crop, position, resample)
        return ImageOps.mirror(fitted) if self.mirror and rng.random() < 0.5 else fitted

    def captions(self, count: int, seed: int) -> list[str]:
        order = np.random.default_rng(seed).permutation(len(self))
        return [self.items[int(order[i % len(self)])].caption for i in range(count)]

    def part(self, items: Iterable[FolderItem]) -> "FolderDataset":
        """The same dataset with only these of its items."""
        part = copy.copy(self)
        part.items = list(items)
        return part

    def parts_of_one_size(self) -> "list[FolderDataset]":
        """A dataset for each size (height, width): without buckets, this one alone."""
        sizes = sorted({item.size for item in self.items})
        return [self.part(item for item in self.items if item.size == size) for size in sizes]

    def split(self, fraction: float) -> "tuple[FolderDataset, FolderDataset]":
        """The part for training, and about this fraction of the images for validation.

        A hash of the file's content decides, so an image stays in its part when others are added or renamed, and copies are together.
        Raises DaguerreError if a part would be empty.
        """
        held_out = [item for item in self.items if int(item.digest, 16) < fraction * 16 ** len(item.digest)]
        paths = {item.path for item in held_out}
        trained = [item for item in self.items if item.path not in paths]
        if not held_out or not trained:
            raise DaguerreError(
                f"A validation fraction of {fraction:g} leaves {len(trained)} of {len(self)} images for training and {len(held_out)} for "
                f"validation; both need at least one. Use a {'larger' if trained else 'smaller'} fraction, or more images."
            )
        return self.part(trained), self.part(held_out)

    def _check(self, entry: ImageEntry) -> None:
        """Set the entry's digest and problem; only decoding shows that a file is complete."""
        if self._captioned and not (entry.caption and entry.caption.strip()):
            entry.problem = f"{entry.path} has no caption; write it in {entry.expected}."
            return
        try:
            open_image(entry.path, min_side=self.size, max_pixels=self.max_pixels)
            entry.size = image_size(entry.path) if self.crop == "bucket" else (self.size, self.size)
            entry.digest = file_digest(entry.path)
        except DaguerreError as error:
            entry.problem = str(error)


def _crop_summary(items: Iterable[FolderItem], crop: CropMode, mirror: bool) -> str:
    """One line: how the images get their sizes."""
    sizes = Counter(item.size for item in items)
    widths = ", ".join(
        f"{width}×{height} ({count})" if len(sizes) > 1 else f"{width}×{height}" for (height, width), count in sorted(sizes.items())
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
