"""A folder of anyone's images with captions, each image's where the first of these three holds it:

    metadata.jsonl      {"file_name": "a.png", "text": "a red apple"} a line, paths relative to the folder
    a.png, a.txt        the caption beside each image, in this folder or the ones below
    red_apple/a.png     one folder per class, whose name is the caption of its images if none of them has one of its own

Hidden files and folders, such as the `._a.png` of a Mac, are nobody's images. Everything is checked once when the source is made, so that
training never stops at image 40,000.
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

ImageEntry = tuple[Path, str | None, str]  # image, caption or None, where the caption should have been


class FolderDataset:
    """The images of a folder as squares of `size` pixels: the shorter side is fitted, the longer one cut.

    `crop` "random" cuts anywhere along the longer side, "center" in its middle. Where not `captioned`, what has no caption has an empty
    one. `bad` lists (file, why) of what `skip_bad` left out.

    Raises DaguerreError if the folder is missing or has no images, or, unless `skip_bad`, naming the first image that is damaged, too
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
            raise DaguerreError(f"Image size {size} is not positive.")
        self.folder, self.size, self.crop, self.max_pixels = Path(folder), size, crop, max_pixels
        entries = [(path, text if captioned else text or "", place) for path, text, place in _entries(self.folder)]
        self._captioned = captioned
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = list(pool.map(self._problem, entries))
        self.bad = [(path, problem) for (path, _, _), problem in zip(entries, problems, strict=True) if problem]
        if self.bad and not skip_bad:
            more = f" {len(self.bad) - 1} more of {len(entries)} are bad too." if len(self.bad) > 1 else ""
            raise DaguerreError(f"{self.bad[0][1]}{more} Mend them, or use --skip-bad to go on without.")
        self.items = [(path, text) for (path, text, _), bad in zip(entries, problems, strict=True) if text is not None and not bad]
        if not self.items:
            raise DaguerreError(f"None of the {len(entries)} images in {self.folder} can be used; the first: {self.bad[0][1]}")

    @property
    def key(self) -> str:
        described = [(path.relative_to(self.folder).as_posix(), path.stat().st_size, text) for path, text in self.items]
        digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
        return f"folder {digest} size {self.size} crop {self.crop}"

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        path, text = self.items[index]
        along = rng.random() if self.crop == "random" else 0.5
        return Sample(resize_and_crop(open_image(path, at_least=self.size, max_pixels=self.max_pixels), self.size, along), text)

    def captions(self, count: int, seed: int) -> list[str]:
        order = np.random.default_rng(seed).permutation(len(self))
        return [self.items[int(order[i % len(self)])][1] for i in range(count)]

    def _problem(self, entry: ImageEntry) -> str | None:
        """What is wrong with an entry; decoding is the only way to know that a file is whole."""
        path, text, place = entry
        if self._captioned and not (text and text.strip()):
            return f"{path} has no caption; {place} should hold it."
        try:
            open_image(path, at_least=self.size, max_pixels=self.max_pixels)
        except DaguerreError as error:
            return str(error)
        return None


def _entries(folder: Path) -> list[ImageEntry]:
    """Every image of a folder with its caption: first those of metadata.jsonl in its order, then the others by path."""
    if not folder.is_dir():
        raise DaguerreError(f"There is no folder {folder}; give one with images and captions.")
    metadata = folder / "metadata.jsonl"
    entries = [
        entry if entry[1] is not None else _from_text(entry[0], entry[2])
        for entry in (_from_metadata(metadata) if metadata.is_file() else ())
    ]
    listed = {path for path, _, _ in entries}
    entries += [_from_text(path, str(path.with_suffix(".txt"))) for path in _images(folder) if path not in listed]
    if not entries:
        raise DaguerreError(
            f"No images in {folder}; put some there ({', '.join(sorted(SUFFIXES))}) with captions in .txt files beside them."
        )
    told = {path.parent for path, text, _ in entries if text is not None} | {folder}
    return [entry if entry[0].parent in told else _from_class(entry[0]) for entry in entries]


def _images(folder: Path) -> list[Path]:
    """The images in a folder and those below it that are not hidden."""
    visible = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in visible if path.suffix.lower() in SUFFIXES and path.is_file())


def _from_text(path: Path, place: str) -> ImageEntry:
    text = path.with_suffix(".txt")
    try:
        return path, text.read_text(encoding="utf-8").strip() if text.is_file() else None, place
    except UnicodeDecodeError:
        return path, "", f"{text}, in UTF-8,"


def _from_class(path: Path) -> ImageEntry:
    return path, path.parent.name.replace("_", " ").strip(), "its folder's name"


def _from_metadata(source: Path) -> Iterator[ImageEntry]:
    folder = source.parent
    lines = source.read_bytes().decode("utf-8", errors="replace").splitlines()
    if not any(line.strip() for line in lines):
        raise DaguerreError(f'{source} is empty; each line should look like {{"file_name": "a.png", "text": "a red apple"}}.')
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
            raise DaguerreError(f"{source}, line {number}: {name!r} lies outside the folder; images must be inside it.")
        text = entry.get("text")
        yield path, text.strip() if isinstance(text, str) else None, f'"text" in {source}, line {number},'
