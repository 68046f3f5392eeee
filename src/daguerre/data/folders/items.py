"""The images of a `FolderDataset`: files, or members of tar files."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from daguerre.data.images import image_size, open_image
from daguerre.errors import DaguerreError


class TarMember(NamedTuple):
    """A file inside a tar file: its bytes start at `offset`. opened: opens the tar file, if it may have to be fetched first."""

    file: Path
    offset: int
    length: int
    opened: Callable[[], BinaryIO] | None = None

    def read(self) -> bytes:
        """Its content. Raises DaguerreError if the tar file cannot be read or has become shorter."""
        try:
            with self.opened() if self.opened else self.file.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.length)
        except OSError as error:
            raise DaguerreError(f"Cannot read {self.file}: {error.strerror or error}. Allow reading it, or remove it.") from error
        if len(content) < self.length:
            raise DaguerreError(f"{self.file} has become shorter; it must stay the same while it is used.")
        return content


class FolderItem(NamedTuple):
    """An image of a `FolderDataset`.

    label: the name of its class: "label" or "class" of a metadata file, else the name of its subfolder, else "". digest: of the file's
    bytes, or of its name in a shard: 16 hexadecimal digits. size: (height, width) of its samples. member: where it is, if the path is that
    of a tar file with the name of the member.
    """

    path: Path
    caption: str
    label: str
    digest: str
    size: tuple[int, int]
    member: TarMember | None = None

    def open(self, **options: int) -> Image.Image:
        """The image; options and errors as in `open_image`."""
        return open_image(self._file, name=str(self.path), **options)

    def original_size(self) -> tuple[int, int]:
        """(height, width) of the file's image; errors as in `image_size`."""
        return image_size(self._file, str(self.path))

    def read(self) -> bytes:
        """The bytes of the file."""
        return self.path.read_bytes() if self.member is None else self.member.read()

    @property
    def _file(self) -> Path | io.BytesIO:
        return self.path if self.member is None else io.BytesIO(self.member.read())

    @property
    def version(self) -> tuple[int, *tuple[int | str, ...]]:
        """Size of the image, and time of the file and where the image is in it: changes when the image does.

        Of a fetched file, which need not exist now, the name of its folder counts instead of the time: a hash of its content.
        """
        if self.member is None:
            state = self.path.stat()
            return state.st_size, state.st_mtime_ns
        file = self.member.file
        return self.member.length, self.member.offset, file.parent.name if self.member.opened else file.stat().st_mtime_ns


class ItemColumns(NamedTuple):
    """The same values of N images, as arrays. sizes: (N, 2). labels: (N,), as numbers of names."""

    sizes: np.ndarray
    labels: np.ndarray
    names: Sequence[str]

    @property
    def buckets(self) -> tuple[list[tuple[int, int]], np.ndarray]:
        """The different sizes, sorted, and for each image the number of its size."""
        packed, numbers = np.unique(self.sizes[:, 0].astype(np.int64) << 32 | self.sizes[:, 1], return_inverse=True)
        return [(int(each) >> 32, int(each) & 0xFFFFFFFF) for each in packed], numbers

    @property
    def label_counts(self) -> Counter[str]:
        """The number of images of each label."""
        counts = np.bincount(self.labels, minlength=len(self.names))
        return Counter({name: int(count) for name, count in zip(self.names, counts, strict=True) if count})


class ItemTable(Sequence[FolderItem]):
    """Items that are made when they are asked for, because a list of them would not fit in memory."""

    @property
    def columns(self) -> ItemColumns:
        """Of all items."""
        raise NotImplementedError

    @property
    def digests(self) -> np.ndarray:
        """Of all items, as numbers, (N,) uint64."""
        raise NotImplementedError


def columns_of(items: Sequence[FolderItem]) -> ItemColumns:
    """The columns of any items."""
    if isinstance(items, ItemTable):
        return items.columns
    names = sorted({item.label for item in items})
    numbers = {name: number for number, name in enumerate(names)}
    sizes = np.array([item.size for item in items], dtype=np.int64).reshape(-1, 2)
    labels = np.array([numbers[item.label] for item in items], dtype=np.int64)
    return ItemColumns(sizes, labels, names)


def digests_of(items: Sequence[FolderItem]) -> np.ndarray:
    """The digests of any items as numbers, (N,) uint64."""
    return items.digests if isinstance(items, ItemTable) else np.array([int(item.digest, 16) for item in items], dtype=np.uint64)
