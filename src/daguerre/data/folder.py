"""A folder of images with captions. The caption of an image comes from the first of these that has one:

    metadata.jsonl      {"file_name": "a.png", "text": "a red apple"} per line, paths relative to the folder
    a.png, a.txt        a text file next to each image, in this folder or its subfolders
    red_apple/a.png     one subfolder per class; its name is the caption if none of its images has its own

Hidden files and folders, such as the `._a.png` of macOS, are ignored. All files are checked when the dataset is opened, so that training
does not stop at image 40,000.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from daguerre.data.dataset import Sample
from daguerre.data.images import SUFFIXES, open_image, resize_and_crop
from daguerre.errors import DaguerreError
from daguerre.limits import MAX_PIXELS

ImageEntry = tuple[Path, str | None, str]  # image file, caption or None, description of where the caption is expected


class FolderDataset:
    """The images of a folder as squares of `size` pixels: the shorter side is resized, the longer one cropped.

    `crop`: "random" crops at a random position of the longer side, "center" in the middle. If not `captioned`, missing captions are empty.
    `skipped` lists (file, problem) of the images that `skip_bad` leaves out.

    Raises DaguerreError if the folder is missing or has no usable image, or, unless `skip_bad`, for the first image that is damaged, too
    large or without a caption.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        crop: Literal["random", "center"] = "random",
        captioned: bool = True,
        skip_bad: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        if size < 1:
            raise DaguerreError(f"size is {size}; it must be 1 or more.")
        self.folder, self.size, self.crop, self.max_pixels = Path(folder), size, crop, max_pixels
        entries = [(path, text if captioned else text or "", expected) for path, text, expected in _entries(self.folder)]
        self._captioned = captioned
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = list(pool.map(self._problem, entries))
        self.skipped = [(path, problem) for (path, _, _), problem in zip(entries, problems, strict=True) if problem]
        if self.skipped and not skip_bad:
            more = f" {len(self.skipped) - 1} more of {len(entries)} images have problems." if len(self.skipped) > 1 else ""
            raise DaguerreError(f"{self.skipped[0][1]}{more} Fix them, or leave them out with --skip-bad.")
        self.items = [(path, text) for (path, text, _), bad in zip(entries, problems, strict=True) if text is not None and not bad]
        if not self.items:
            raise DaguerreError(f"None of the {len(entries)} images in {self.folder} is usable. The first problem: {self.skipped[0][1]}")

    @property
    def key(self) -> str:
        described = [(path.relative_to(self.folder).as_posix(), path.stat().st_size, text) for path, text in self.items]
        digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
        return f"folder {digest} size {self.size} crop {self.crop}"

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        path, text = self.items[index]
        position = rng.random() if self.crop == "random" else 0.5
        return Sample(resize_and_crop(open_image(path, min_side=self.size, max_pixels=self.max_pixels), self.size, position), text)

    def captions(self, count: int, seed: int) -> list[str]:
        order = np.random.default_rng(seed).permutation(len(self))
        return [self.items[int(order[i % len(self)])][1] for i in range(count)]

    def _problem(self, entry: ImageEntry) -> str | None:
        """The problem with an entry, or None; only decoding shows that a file is complete."""
        path, text, expected = entry
        if self._captioned and not (text and text.strip()):
            return f"{path} has no caption; write it in {expected}."
        try:
            open_image(path, min_side=self.size, max_pixels=self.max_pixels)
        except DaguerreError as error:
            return str(error)
        return None


def _entries(folder: Path) -> list[ImageEntry]:
    """All images of a folder with captions: first those of metadata.jsonl in its order, then the others by path."""
    if not folder.is_dir():
        raise DaguerreError(f"There is no folder {folder}; give a folder of images with captions.")
    metadata = folder / "metadata.jsonl"
    entries = [
        entry if entry[1] is not None else _from_text(entry[0], entry[2])
        for entry in (_from_metadata(metadata) if metadata.is_file() else ())
    ]
    listed = {path for path, _, _ in entries}
    entries += [_from_text(path, str(path.with_suffix(".txt"))) for path in _images(folder) if path not in listed]
    if not entries:
        raise DaguerreError(
            f"No images in {folder}; add some ({', '.join(sorted(SUFFIXES))}) with captions in .txt files of the same names."
        )
    captioned = {path.parent for path, text, _ in entries if text is not None} | {folder}
    return [entry if entry[0].parent in captioned else _from_class(entry[0]) for entry in entries]


def _images(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, without hidden ones."""
    visible = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in visible if path.suffix.lower() in SUFFIXES and path.is_file())


def _from_text(path: Path, expected: str) -> ImageEntry:
    text = path.with_suffix(".txt")
    try:
        return path, text.read_text(encoding="utf-8").strip() if text.is_file() else None, expected
    except UnicodeDecodeError:
        return path, "", f"{text} in UTF-8"


def _from_class(path: Path) -> ImageEntry:
    return path, path.parent.name.replace("_", " ").strip(), "its folder's name"


def _from_metadata(source: Path) -> Iterator[ImageEntry]:
    folder = source.parent
    lines = source.read_bytes().decode("utf-8", errors="replace").splitlines()
    if not any(line.strip() for line in lines):
        raise DaguerreError(f'{source} is empty; each line must look like {{"file_name": "a.png", "text": "a red apple"}}.')
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = entry["file_name"]
        except (ValueError, KeyError, TypeError) as error:
            raise DaguerreError(f'{source}, line {number}, is not of the form {{"file_name": …, "text": …}} ({error!r}).') from error
        path = folder / str(name)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DaguerreError(f"{source}, line {number}: {name!r} is outside the folder; images must be inside it.")
        text = entry.get("text")
        yield path, text.strip() if isinstance(text, str) else None, f'"text" in {source}, line {number}'
