"""What a folder of images contains. The caption of an image comes from the first of these that has one:

    metadata.jsonl      {"file_name": "a.png", "text": "a red apple"} per line, paths relative to the file; also metadata.csv
    a.png, a.txt        a text file next to each image, in this folder or its subfolders; also a.caption
    red_apple/a.png     one subfolder per class; its name is the caption if none of its images has its own

Text is UTF-8, UTF-16 with a byte order mark, or Windows-1252. Hidden files, thumbnails and other leftovers of systems, and the folders of
training runs are left out; `folder.FolderDataset.summary` names them.
"""

import codecs
import csv
import hashlib
import io
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType

from daguerre.data.images import HEIF_SUFFIXES, SUFFIXES, is_leftover
from daguerre.errors import DaguerreError, join_names

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_FIELDS = ("text", "caption", "prompt")  # of an entry of METADATA_FILES
LABEL_FIELDS = ("label", "class")  # likewise, of the name of the image's class
# Names of folders that hold a whole dataset, so that they are no captions.
GENERIC_NAMES = frozenset(("train", "training", "test", "val", "valid", "validation", "image", "images", "img", "imgs", "data", "dataset"))
RUN_FOLDERS = frozenset(("samples", "model", "checkpoints", "cache", "tensorboard"))  # of a training run, next to its RUN_FILE
RUN_FILE = "recipe.json"
REPEATS = re.compile(r"([1-9]\d{0,2})_(.*\S.*)")  # "10_red apple", kohya's convention: images repeated 10 times, of "red apple"
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass
class ImageEntry:
    """An image file; its caption, or None; where the caption comes from (a suffix or file name), and where a missing one is expected."""

    path: Path
    caption: str | None
    source: str
    expected: str
    label: str = ""  # of a metadata file
    digest: str = ""  # of the file's bytes
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels
    problem: str | None = None


@dataclass
class Listing:
    """The files of a folder and its subfolders, sorted by path, and what was left out."""

    files: list[Path] = field(default_factory=list)
    normalized: dict[Path, Path] = field(default_factory=dict)  # files by path with composed letters and a lower-case suffix
    left_out: list[Path] = field(default_factory=list)  # folders
    used: set[Path] = field(default_factory=set)
    windows_text: list[Path] = field(default_factory=list)  # files that were read as Windows-1252

    def find(self, path: Path) -> Path | None:
        return path if path.is_file() else self.normalized.get(_normalize(path))

    def read_text(self, path: Path) -> str:
        """The text of a file. Raises UnicodeDecodeError if its encoding is unknown."""
        self.used.add(path)
        data = path.read_bytes()
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            text = data.decode("cp1252") if encoding == "utf-8" else ""
            if not text or re.search(r"[^\x00-\x7f]{3}", text):  # rare in a Western language, usual if the bytes are another encoding
                raise
            self.windows_text.append(path)
        if "\0" in text:  # UTF-16 without a byte order mark, or no text at all
            raise UnicodeDecodeError(encoding, data, text.index("\0"), text.index("\0") + 1, "it contains the character NUL")
        return text


def file_digest(path: Path) -> str:
    """A hash of a file's bytes: it also changes if an edited file keeps its size and time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _normalize(path: Path) -> Path:
    """A path as a key of `Listing.normalized`: macOS writes "é" as two characters, and suffixes come in upper case, too."""
    return Path(unicodedata.normalize("NFC", str(path.with_suffix(path.suffix.lower()))))


def list_files(folder: Path) -> Listing:
    """The files of a folder and its subfolders, sorted by path, without leftovers and training runs. Links to folders are followed."""
    if not folder.is_dir():
        raise DaguerreError(f"There is no folder {folder}; give a folder of images with captions.")
    listing, visited = Listing(), set[Path]()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        here = Path(root)
        is_run = RUN_FILE in names
        if here.resolve() in visited or (is_run and here != folder):
            if is_run:
                listing.left_out.append(here)
            folders.clear()
            continue
        visited.add(here.resolve())
        left_out = [name for name in folders if is_leftover(here / name) or (is_run and name in RUN_FOLDERS)]
        listing.left_out += [here / name for name in left_out if not name.startswith(".")]
        folders[:] = sorted(set(folders) - set(left_out))
        listing.files += [here / name for name in names if not is_leftover(here / name)]
    listing.files.sort()
    listing.normalized = {_normalize(path): path for path in listing.files}
    return listing


def _raise_unreadable(error: OSError) -> None:
    raise DaguerreError(f"Cannot read the folder {error.filename}: {error.strerror}. Allow reading it, or move it away.") from error


def find_entries(folder: Path, listing: Listing) -> list[ImageEntry]:
    """All images of a folder with captions: first those of the metadata files in their order, then the others by path."""
    entries: list[ImageEntry] = []
    metadata = [path for path in listing.files if path.name in METADATA_FILES]
    for source in sorted(metadata, key=lambda path: -len(path.parts)):  # the one closest to an image is valid
        listed = {entry.path for entry in entries}
        entries += [entry for entry in _from_metadata(folder, source, listing) if entry.path not in listed]
    entries = [_from_text(entry, listing) if entry.caption is None else entry for entry in entries]
    listed = {entry.path for entry in entries}
    images = [path for path in listing.files if path.suffix.lower() in SUFFIXES and path not in listed]
    entries += [_from_text(ImageEntry(path, None, "", str(path.with_suffix(".txt"))), listing) for path in images]
    if not entries:
        raise DaguerreError(
            f"No images in {folder}; add some ({', '.join(sorted(SUFFIXES))}) with captions in .txt files of the same names."
            f"{describe_unused(listing)}"
        )
    captioned = {entry.path.parent for entry in entries if entry.caption is not None} | {folder}
    return [entry if entry.path.parent in captioned else _from_class(entry) for entry in entries]


def _from_text(entry: ImageEntry, listing: Listing) -> ImageEntry:
    path = entry.path
    listing.used.add(path)
    names = [path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES] + [path.with_name(path.name + suffix) for suffix in CAPTION_SUFFIXES]
    found, empty = [text for name in names if (text := listing.find(name))], None
    for text in found:
        try:
            caption = listing.read_text(text).strip()
        except UnicodeDecodeError:
            return replace(entry, caption="", expected=f"{text} in UTF-8")
        if caption:
            return replace(entry, caption=caption, source=f"{text.suffix.lower()} files")
        empty = ""
    return replace(entry, caption=empty, source="")


def _from_class(entry: ImageEntry) -> ImageEntry:
    name = entry.path.parent.name
    if name.lower() in GENERIC_NAMES:
        return entry
    return replace(entry, caption=_class_name(name), source="folder names", expected="its folder's name")


def class_label(entry: ImageEntry, folder: Path) -> str:
    """The class of an image: of its metadata, else the name of the nearest subfolder with a name of its own, else ""."""
    names = reversed(entry.path.relative_to(folder).parent.parts)
    return entry.label or next((_class_name(name) for name in names if name.lower() not in GENERIC_NAMES), "")


def _class_name(folder_name: str) -> str:
    repeated = REPEATS.fullmatch(folder_name)
    return (repeated[2] if repeated else folder_name).replace("_", " ").strip()


def _from_metadata(folder: Path, source: Path, listing: Listing) -> Iterator[ImageEntry]:
    for number, values in _read_metadata(source, listing):
        name = str(values["file_name"])
        separated = name if listing.find(source.parent / name) else name.replace("\\", "/")  # Windows writes backslashes
        relative = os.path.relpath(os.path.abspath(source.parent / separated), os.path.abspath(folder))
        if relative.split(os.sep)[0] == os.pardir:
            raise DaguerreError(f"{source}, line {number}: {name!r} is outside the folder; images must be inside it.")
        path = listing.find(folder / relative) or folder / relative
        listing.used.add(path)
        caption, label = first_text(values, CAPTION_FIELDS, str), first_text(values, LABEL_FIELDS, str | int)
        yield ImageEntry(path, caption, source.name, f'"{CAPTION_FIELDS[0]}" in {source}, line {number}', label=label or "")


def first_text(values: Mapping[str, object], fields: Iterable[str], kinds: type | UnionType) -> str | None:
    """The first of some fields that has a value of these types, as text."""
    texts = (str(value).strip() for field in fields if isinstance(value := values.get(field), kinds))
    return next((text for text in texts if text), None)


def _read_metadata(source: Path, listing: Listing) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line, entry) of a metadata file; every entry has a "file_name"."""
    try:
        text = listing.read_text(source)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DaguerreError(f"{source}, line {line}, is neither UTF-8 nor another known encoding; save it as UTF-8.") from error
    if not text.strip():
        raise DaguerreError(f'{source} is empty; each line must look like {{"file_name": "a.png", "text": "a red apple"}}.')
    if source.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if "file_name" not in (rows.fieldnames or ()):
            raise DaguerreError(f"{source} has the columns {', '.join(rows.fieldnames or ())}; it needs file_name and text.")
        for row in rows:
            if not row["file_name"]:
                raise DaguerreError(f"{source}, line {rows.line_num}, has no file_name; add it or remove the line.")
            yield rows.line_num, row
        return
    for number, line in enumerate(text.split("\n"), 1):  # only these: JSON allows the other line separators inside captions
        if line.strip():
            try:
                entry = json.loads(line)
                entry["file_name"]
            except (ValueError, KeyError, TypeError) as error:
                raise DaguerreError(f'{source}, line {number}, is not of the form {{"file_name": …, "text": …}} ({error!r}).') from error
            yield number, entry


def count_repeats(entries: Iterable[ImageEntry]) -> dict[Path, int]:
    """How often the images of each folder occur, from names like "10_red apple", divided by the common divisor."""
    folders = {entry.path.parent for entry in entries}
    times = {folder: int(found[1]) if (found := REPEATS.fullmatch(folder.name)) else 1 for folder in sorted(folders)}
    divisor = math.gcd(*times.values())
    return {folder: count // divisor for folder, count in times.items()}


def describe_unused(listing: Listing) -> str:
    """The files that are no part of the dataset, counted by suffix."""
    unused = Counter(path.suffix.lower() or path.name for path in listing.files if path not in listing.used)
    if not unused:
        return ""
    hint = "; .heic needs the package pillow-heif" if any(suffix in HEIF_SUFFIXES for suffix in unused) else ""
    return " not used: " + join_names(f"{count} {suffix}" for suffix, count in unused.items()) + hint
