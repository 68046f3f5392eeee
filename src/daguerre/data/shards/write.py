"""Write the images of a folder as shards: tar files of the webdataset format.

    000000.tar      cat/1.cls  cat/1.jpg  cat/1.txt  cat/2.cls  cat/2.jpg  …
    index.json      the shards with their numbers of images, bytes and SHA-256, and the names of the classes
    members.npz     where each image is, and its size

The bytes depend only on the images, captions, classes and limits. Each shard is complete or does not exist, so a run that was killed
continues with the first one that is missing.
"""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from daguerre.atomic_io import atomic_write
from daguerre.data.folders.dataset import FolderDataset
from daguerre.data.folders.items import FolderItem
from daguerre.data.shards.index import read_index_file, write_members
from daguerre.data.shards.remote import SHARD_FORMAT, SHARD_INDEX, SHARD_MEMBERS
from daguerre.errors import DaguerreError
from daguerre.progress import track

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardLimits:
    """A shard ends before it has more than so many millions of bytes or samples; it has at least one sample."""

    megabytes: float
    samples: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.megabytes < math.inf:
            raise DaguerreError(f"--shard-size is {self.megabytes:g} MB; it must be above 0.")
        if self.samples is not None and self.samples < 1:
            raise DaguerreError(f"--samples is {self.samples}; it must be 1 or more.")


class _Sample(NamedTuple):
    """An image with the common name of its files."""

    name: str
    item: FolderItem


def write_shards(source: FolderDataset, out: Path, limits: ShardLimits) -> Path:
    """Write the shards that are missing in `out`, and return the path of the index.

    Raises:
        DaguerreError: `out` has shards of other images or limits, or other files with these names; a file cannot be read or written.
    """
    classes = source.labels
    samples = _named(source)
    plan = [list(part) for part in _split(samples, limits)]
    described = [(each.name, each.item.digest, each.item.caption, each.item.label) for each in samples]
    digest = hashlib.sha256(json.dumps([described, [len(part) for part in plan]]).encode()).hexdigest()
    known, index = read_index_file(out), {"format": SHARD_FORMAT, "plan": digest, "images": len(samples), "classes": classes}
    files = [out / f"{number:06d}.tar" for number in range(len(plan))]
    if known.get("plan") != digest and (known or (out / SHARD_INDEX).exists() or (out.is_dir() and any(out.glob("*.tar")))):
        raise DaguerreError(f"'{out}' has shards of other images, captions or sizes, which are not overwritten; choose another --out.")
    if not known:
        _write_index(out, index)
    numbers = {name: number for number, name in enumerate(classes)}
    for file, part in track(list(zip(files, plan, strict=True)), "writing shards"):
        if not file.exists():
            with atomic_write(file) as opened, tarfile.open(fileobj=opened, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for sample in part:
                    _write_sample(tar, sample, numbers)
    shards = [
        {"name": file.name, "images": len(part), "bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file, part in zip(files, plan, strict=True)
    ]
    members = out / SHARD_MEMBERS
    write_members(members, files, {**index, "shards": shards})
    _write_index(out, {**index, "shards": shards, "members": {"bytes": members.stat().st_size, "sha256": _sha256(members)}})
    return out / SHARD_INDEX


def _named(source: FolderDataset) -> list[_Sample]:
    """All images by name: their path without suffix. A dot in it becomes an underscore, and equal names get numbers."""
    samples, used = [], set[str]()
    for item in sorted(source.items, key=lambda item: source.relative_path(item)):
        path = source.relative_path(item)
        stem = (path.parent / (path.stem.replace(".", "_") or "_")).as_posix()
        name, number = stem, 1
        while name in used:
            number += 1
            name = f"{stem}_{number}"
        used.add(name)
        samples.append(_Sample(name, item))
    return sorted(samples)


def _split(samples: Sequence[_Sample], limits: ShardLimits) -> Iterator[Sequence[_Sample]]:
    """The samples of each shard. A file takes its header and its content in whole blocks."""
    part, size = [], 0
    for sample in samples:
        bytes_needed = sum(_BLOCK + -(-length // _BLOCK) * _BLOCK for length in (sample.item.version[0], len(sample.item.caption.encode())))
        if part and (size + bytes_needed > 1e6 * limits.megabytes or len(part) == limits.samples):
            yield part
            part, size = [], 0
        part.append(sample)
        size += bytes_needed
    yield part


def _write_sample(tar: tarfile.TarFile, sample: _Sample, numbers: dict[str, int]) -> None:
    """Write the files of a sample, sorted by name. A class is written as its number, which webdataset decodes."""
    item = sample.item
    contents = {item.path.suffix.lower(): item.read()}
    if item.caption:
        contents[".txt"] = item.caption.encode()
    if item.label:
        contents[".cls"] = str(numbers[item.label]).encode()
    for suffix, content in sorted(contents.items()):
        entry = tarfile.TarInfo(sample.name + suffix)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


def _write_index(out: Path, record: dict[str, Any]) -> None:
    with atomic_write(out / SHARD_INDEX) as file:
        file.write(json.dumps(record, indent=1).encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
