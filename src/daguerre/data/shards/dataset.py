"""A dataset over shards: the images of tar files, found by an index and read when they are needed."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from daguerre.data.dataset import Sample
from daguerre.data.folders.dataset import FolderDataset
from daguerre.data.folders.files import CAPTION_FIELDS, first_text
from daguerre.data.folders.items import FolderItem, ItemColumns, ItemTable
from daguerre.data.order import shard_order
from daguerre.data.shards.fetch import FetchError, shown
from daguerre.data.shards.index import CaptionKind, ShardIndex, image_sizes, open_index
from daguerre.errors import MAX_LISTED, DaguerreError

MAX_UNREADABLE = 100  # successive images: then the shards are unusable


class ShardItems(ItemTable):
    """The images of some rows of an index. sizes: (height, width) of each row's samples, (N, 2)."""

    def __init__(self, index: ShardIndex, rows: np.ndarray, sizes: np.ndarray):
        self.found, self.rows, self.sizes = index, rows, sizes

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> FolderItem: ...
    @overload
    def __getitem__(self, index: slice) -> "ShardItems": ...
    def __getitem__(self, index: int | slice) -> "FolderItem | ShardItems":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row, found = int(self.rows[index]), self.found
        member, label = found.member(row), found.labels[int(found.columns["label"][row])]
        height, width = self.sizes[index]
        name = found.name(row)
        return FolderItem(member.file / name, self._caption(row), label, _digest(name), (int(height), int(width)), member)

    def take(self, indices: np.ndarray) -> "ShardItems":
        """The items of these indices."""
        return ShardItems(self.found, self.rows[indices], self.sizes[indices])

    @property
    def columns(self) -> ItemColumns:
        columns = self.found.columns
        return ItemColumns(self.sizes, columns["label"][self.rows], self.found.labels)

    @property
    def digests(self) -> np.ndarray:
        return np.array([int(_digest(self.found.name(int(row))), 16) for row in self.rows], dtype=np.uint64)

    def _caption(self, row: int) -> str:
        place = self.found.caption(row)
        text = "" if place is None else place.read().decode("utf-8-sig", "replace").strip()
        if self.found.columns["caption_kind"][row] != CaptionKind.JSON:
            return text
        try:
            values = json.loads(text)
        except ValueError:
            return ""
        return (first_text(values, CAPTION_FIELDS, str) if isinstance(values, dict) else None) or ""


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


class ShardDataset(FolderDataset):
    """The images of shards, with the options of a `FolderDataset`. What is damaged or missing is left out and named in one line.

    Only headers are read when it is opened; for buckets also the size of each image, once. An image that turns out to be damaged is
    replaced by the next one of its size.
    """

    def __init__(self, data: str | Path, size: int, *, shard_cache_size: float | None = None, **options: Any):
        """data: a directory or pattern, see `shard_files`, or an address, see `remote`. shard_cache_size: of fetched shards, in GB.

        Raises DaguerreError if no image in it is usable.
        """
        self._index = open_index(data, shard_cache_size)
        self._origin = shown(str(data)) if self._index.remote else str(self._index.files[0].parent)
        self._unreadable: set[str] = set()
        super().__init__(self._index.files[0].parent, size, **options)

    def _find(self, skip_bad: bool, repeats: bool) -> tuple[Sequence[FolderItem], list[str]]:
        index = self._index
        problems, count = [*index.problems], len(index.problems)
        usable = np.ones(len(index), dtype=bool)
        sizes = np.full((len(index), 2), self.size, dtype=np.int32)
        if self.captioned:
            usable &= index.columns["caption_kind"] != CaptionKind.NONE
            problems += [f"{self._path(row)} has no caption" for row in np.flatnonzero(~usable)[:MAX_LISTED]]
        if self.crop == "bucket":
            measured = image_sizes(index)
            unreadable = usable & (measured[:, 0] == 0)
            problems += [f"{self._path(row)} cannot be read" for row in np.flatnonzero(unreadable)[:MAX_LISTED]]
            usable &= ~unreadable
            originals, numbers = np.unique(measured[usable], axis=0, return_inverse=True)
            rectangles = [self._bucket((int(height), int(width))) for height, width in originals]
            sizes[usable] = np.array(rectangles, dtype=np.int32).reshape(-1, 2)[numbers.reshape(-1)]
        rows, self.skipped = np.flatnonzero(usable), []
        if not rows.size:
            reasons = ", ".join(problems[:MAX_LISTED]) or "they have none"
            raise DaguerreError(f"No image in the {len(index.files)} shards in {self._origin} is usable: {reasons}.")
        lines, count = [f"images: {rows.size} in {len(index.files)} shards in {self._origin}"], count + len(index) - rows.size
        if problems:
            more = f", and {count - MAX_LISTED} more" if count > MAX_LISTED else ""
            lines.append(f"left out: {count}: {', '.join(problems[:MAX_LISTED])}{more}")
        return ShardItems(index, rows, sizes[rows]), lines

    def _path(self, row: int) -> Path:
        return self._index.member(row).file / self._index.name(row)

    @property
    def key(self) -> str:
        """One line for each shard, so that the error of a resumed run names those that differ."""
        index = self._index
        shards = (f"shard {file.name} {digest}" for file, digest in zip(index.files, index.digests, strict=True))
        if not isinstance(self.items, ShardItems):
            return "\n".join([super().key, *shards])
        rows = self.items.rows
        some = "" if len(rows) == len(index) else f" {len(rows)} of {len(index)}, {hashlib.sha256(rows.tobytes()).hexdigest()[:16]}"
        return "\n".join([self._key(f"in shards{some}"), *shards])

    @property
    def label_key(self) -> str:
        return "" if isinstance(self.items, ShardItems) else super().label_key

    @property
    def shards(self) -> np.ndarray | None:
        return self.items.found.shards[self.items.rows] if isinstance(self.items, ShardItems) else None

    @property
    def relative_paths(self) -> Sequence[Path]:
        if not isinstance(self.items, ShardItems):
            return super().relative_paths
        return [Path(self._index.name(int(row))) for row in self.items.rows]  # without their captions

    @property
    def fetch_shard(self) -> Callable[[int], None] | None:
        return self._fetch if self._index.remote and self.shards is not None else None

    def _fetch(self, number: int) -> None:
        self._index.remote[number].fetch()

    def captions(self, count: int, seed: int) -> list[str]:
        """Those of the first images of an epoch, which are in few shards."""
        if self.shards is None:
            return super().captions(count, seed)
        order = shard_order(seed, 0, self.shards)
        return [self.items[int(order[i % len(self)])].caption for i in range(count)]

    def rows(self, indices: np.ndarray) -> FolderDataset:
        if not isinstance(self.items, ShardItems):
            return super().rows(indices)
        part = self.part(())
        part.items = self.items.take(indices)
        return part

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        size, failures = self._size_of(index), 0
        for following in range(index, index + len(self)):
            if self._size_of(following % len(self)) == size:
                try:
                    return super().sample(following % len(self), rng)
                except FetchError:
                    raise
                except DaguerreError as error:
                    self._report(str(error))
                    failures += 1
            if failures == MAX_UNREADABLE:
                break
        raise DaguerreError(f"{failures} successive images of the shards in {self._origin} cannot be read; make them again.")

    def _size_of(self, index: int) -> tuple[int, int]:
        if isinstance(self.items, ShardItems):
            height, width = self.items.sizes[index]  # without its caption
            return int(height), int(width)
        return self.items[index].size

    def _report(self, problem: str) -> None:
        """Name an image that cannot be read, once in each process."""
        if problem not in self._unreadable:
            self._unreadable.add(problem)
            print(f"replaced by the next image: {problem} ({len(self._unreadable)} so far)", file=sys.stderr)
