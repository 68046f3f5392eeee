"""What is in a set of shards, as arrays: where each image and its caption are, so that any image is read by its number.

As in webdataset, the files of one sample follow each other and have one name up to its first dot: `cat/1.jpg`, `cat/1.txt`, `cat/1.cls`.
The index is kept in the user's cache folder until the name, size or time of a shard changes. `write_shards` also writes it next to the
shards, so that those at an address can be opened before any of them is fetched.
"""

import glob
import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from daguerre.atomic_io import atomic_write, expand_user, is_address
from daguerre.data.folders.files import CAPTION_SUFFIXES
from daguerre.data.folders.items import TarMember
from daguerre.data.images import SUFFIXES, image_size, is_leftover
from daguerre.data.shards.fetch import MAX_INDEX_BYTES, FetchError, shown
from daguerre.data.shards.remote import SHARD_FORMAT, SHARD_INDEX, RemoteFile, find_remote, index_record, shard_cache
from daguerre.data.shards.tar import TarEntry, scan_tar
from daguerre.errors import DaguerreError
from daguerre.progress import track

_MAX_COMPRESSION = 100  # of members.npz; that of names and positions is far less
_HEADER_BYTES = 1 << 16  # of an image, which usually have its size
_COLUMNS = {  # of each image
    "offset": np.int64,  # of its bytes
    "bytes": np.int64,
    "caption_offset": np.int64,
    "caption_bytes": np.int64,
    "caption_kind": np.uint8,
    "label": np.int32,  # number of its class; the last name is ""
    "name_end": np.int64,  # in all names
}
_NO_CAPTION: TarEntry = ("", 0, 0)


class CaptionKind(IntEnum):
    """What the caption of an image is."""

    NONE, TEXT, JSON = range(3)


@dataclass(frozen=True)
class ShardIndex:
    """N images in shards.

    files: the shards, sorted. ends: for each shard, the number of images in it and those before. names: of all images, without their
    shards. labels: the names of classes. problems: what is missing or damaged, with its place. digests: of each shard, for `key`.
    remote: the shards at an address, whose `files` are fetched when they are needed. sizes: (height, width) of the images, if it is known.
    """

    files: Sequence[Path]
    ends: np.ndarray
    columns: Mapping[str, np.ndarray]
    names: bytes
    labels: Sequence[str]
    problems: Sequence[str]
    digests: Sequence[str]
    remote: Sequence[RemoteFile] = ()
    sizes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def name(self, row: int) -> str:
        """The name of an image, such as `cat/1.jpg`."""
        ends = self.columns["name_end"]
        return self.names[int(ends[row - 1]) if row else 0 : int(ends[row])].decode("utf-8", "surrogateescape")

    def member(self, row: int) -> TarMember:
        """Where the bytes of an image are."""
        return self._member(row, "offset", "bytes")

    def caption(self, row: int) -> TarMember | None:
        """Where the caption of an image is: a text, or a JSON object if the kind is JSON."""
        if self.columns["caption_kind"][row] == CaptionKind.NONE:
            return None
        return self._member(row, "caption_offset", "caption_bytes")

    def _member(self, row: int, offset: str, length: str) -> TarMember:
        shard = int(np.searchsorted(self.ends, row, side="right"))
        opened = self.remote[shard].open if self.remote else None
        return TarMember(self.files[shard], int(self.columns[offset][row]), int(self.columns[length][row]), opened)

    @property
    def shards(self) -> np.ndarray:
        """The number of the shard of each image."""
        return np.repeat(np.arange(len(self.files)), np.diff(self.ends, prepend=0))


def shard_files(data: str | Path) -> list[Path]:
    """The shards that a directory or a pattern such as `data/*.tar` names, sorted; none if it is a directory of other files."""
    path = expand_user(data)
    if not path.is_dir():
        return sorted(Path(name) for name in glob.glob(str(path)) if name.endswith(".tar")) if path.suffix == ".tar" else []
    found = [entry for entry in path.iterdir() if not is_leftover(entry)]
    shards = sorted(entry for entry in found if entry.suffix == ".tar" and entry.is_file())
    return shards if shards and not any(entry.suffix.lower() in SUFFIXES or entry.is_dir() for entry in found) else []


def read_index_file(folder: Path) -> dict[str, Any]:
    """The index that `write_shards` wrote in a folder; empty if there is none."""
    with suppress(OSError):
        return index_record((folder / SHARD_INDEX).read_bytes())
    return {}


def open_index(data: str | Path, cache_gigabytes: float | None = None) -> ShardIndex:
    """The index of the shards that `shard_files` or, for an address, `find_remote` finds: from the cache or from their headers.

    Raises DaguerreError if there are none, one cannot be read, or `write_shards` has not finished.
    """
    if is_address(data):
        return _open_remote(str(data), cache_gigabytes)
    files, whole = shard_files(data), expand_user(data).is_dir()
    if not files:
        raise DaguerreError(
            f"There are no shards '{data}'; give a directory with .tar files and nothing else, or a pattern like 'data/*.tar'."
        )
    record = read_index_file(files[0].parent)
    if record and "shards" not in record:
        raise DaguerreError(f"The shards in {files[0].parent} are not complete; run the same `daguerre shard` once more.")
    missing = sorted({each["name"] for each in record.get("shards", ())} - {file.name for file in files}) if whole else []
    states = [(str(file.absolute()), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    cache, key = _cache_file(files, "index"), hashlib.sha256(json.dumps([SHARD_FORMAT, states, missing, record]).encode()).hexdigest()
    if (stored := _load(cache, key)) is None:
        index = scan_shards(files, record, [f"{name} is missing" for name in missing])
        _store(cache, key, _arrays(index))
        return index
    return _from_arrays(files, stored)


def _open_remote(address: str, cache_gigabytes: float | None) -> ShardIndex:
    """The index of shards at an address: what `write_members` wrote, or from the headers of the shards, which are fetched for that."""
    found = find_remote(address, cache_gigabytes)
    found.announce(address)
    files = [file.path for file in found.files]
    if found.members is not None:
        with found.members.open() as file:
            return _read_members(file, found.files, found.members.address)
    cache, key = _cache_file(files, "index"), json.dumps([SHARD_FORMAT, [*map(str, files)], found.record])
    if (stored := _load(cache, key)) is not None:
        return replace(_from_arrays(files, stored), remote=found.files)

    def fetched() -> Iterator[Path]:
        for each in track(found.files, "fetching shards"):
            each.fetch()
            yield each.path

    try:
        index = replace(scan_shards(fetched(), found.record, [], strict=True), remote=found.files)
    except OSError as error:  # such as one that another process removed
        raise FetchError(f"Cannot read the shards of {shown(address)} in {shard_cache()}: {error}. Start again.") from error
    _store(cache, key, _arrays(index))
    return index


def write_members(path: Path, files: Sequence[Path], record: Mapping[str, Any]) -> None:
    """Write where each image of shards is, and its size, for `open_index` of an address."""
    index = scan_shards(sorted(files), record, [])
    with atomic_write(path) as file:
        np.savez_compressed(file, sizes=image_sizes(index), **_arrays(index))  # pyright: ignore[reportArgumentType]


def _read_members(file: BinaryIO, remote: Sequence[RemoteFile], address: str) -> ShardIndex:
    """What `write_members` wrote about these shards; raises FetchError for something else, such as an image outside of its shard."""
    limit = max(MAX_INDEX_BYTES, _MAX_COMPRESSION * os.fstat(file.fileno()).st_size)
    with suppress(Exception), np.load(file) as stored:  # zipfile, zlib, numpy and json have many errors for damaged files
        if sum(each.file_size for each in stored.zip.infolist()) <= limit:
            arrays = {name: stored[name] for name in ("sizes", "names", "lists", "ends", *_COLUMNS)}
            index = replace(_from_arrays([each.path for each in remote], arrays), sizes=arrays["sizes"], remote=remote)
            if _is_consistent(index):
                return replace(index, digests=[(each.sha256 or "")[:16] for each in remote])
    raise FetchError(f"{shown(address)} is damaged; run `daguerre shard` once more where the shards were written, and upload it again.")


def _is_consistent(index: ShardIndex) -> bool:
    """Whether the arrays about shards at an address fit each other, and every image and caption is inside of its shard."""
    columns, ends, count = index.columns, index.ends, len(index)
    if any(column.shape != (count,) or column.dtype != _COLUMNS[name] for name, column in columns.items()):
        return False
    if index.sizes is None or index.sizes.shape != (count, 2) or index.sizes.dtype != np.int32 or (index.sizes < 0).any():
        return False
    if ends.shape != (len(index.remote),) or ends.dtype != np.int64 or ends[-1] != count or (np.diff(ends, prepend=0) < 0).any():
        return False
    space = np.array([each.bytes for each in index.remote])[index.shards]
    inside = [
        (columns[offset] >= 0) & (columns[length] >= 0) & (columns[length] <= space) & (columns[offset] <= space - columns[length])
        for offset, length in (("offset", "bytes"), ("caption_offset", "caption_bytes"))
    ]
    return bool(
        np.all(inside)
        and (columns["caption_kind"] <= max(CaptionKind)).all()
        and ((columns["label"] >= 0) & (columns["label"] < len(index.labels))).all()
        and (np.diff(columns["name_end"], prepend=0) >= 0).all()
        and (not count or columns["name_end"][-1] <= len(index.names))
        and all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in (index.labels, index.problems))
    )


def _arrays(index: ShardIndex) -> dict[str, np.ndarray]:
    lists = json.dumps([index.labels, index.problems, index.digests]).encode()
    names, texts = (np.frombuffer(text, dtype=np.uint8) for text in (index.names, lists))
    return {"names": names, "lists": texts, "ends": index.ends, **index.columns}


def _from_arrays(files: Sequence[Path], arrays: Mapping[str, np.ndarray]) -> ShardIndex:
    labels, problems, digests = json.loads(arrays["lists"].tobytes())
    columns = {name: arrays[name] for name in _COLUMNS}
    return ShardIndex(files, arrays["ends"], columns, arrays["names"].tobytes(), labels, problems, digests)


def image_sizes(index: ShardIndex) -> np.ndarray:
    """The sizes (height, width) of all images, (N, 2), from the cache or from their headers; 0 for those that cannot be read."""
    if index.sizes is not None:
        return index.sizes
    cache, key = _cache_file(index.files, "sizes"), json.dumps([index.digests, len(index)])
    if (stored := _load(cache, key)) is not None:
        return stored["sizes"]
    sizes = np.zeros((len(index), 2), dtype=np.int32)
    for row in track(range(len(index)), "measuring images"):
        member = index.member(row)
        for length in (_HEADER_BYTES, member.length):  # some formats have their size at the end
            try:
                sizes[row] = image_size(io.BytesIO(member._replace(length=min(length, member.length)).read()))
                break
            except FetchError:
                raise
            except DaguerreError:
                continue
    _store(cache, key, {"sizes": sizes})
    return sizes


def _cache_file(files: Sequence[Path], kind: str) -> Path:
    """Where the arrays of shards are kept: one file for each folder and name without its number."""
    places = str(files[0].parent.resolve()), re.sub(r"\d+", "", files[0].name)
    name = hashlib.sha256(json.dumps(places).encode()).hexdigest()[:16]
    return shard_cache() / f"{name}-{kind}.npz"


def _load(cache: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays that were stored with this key; None if there are none."""
    with suppress(OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile), np.load(cache) as stored:
        return {name: stored[name] for name in stored.files} if str(stored["key"]) == key else None
    return None


def _store(cache: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    with suppress(DaguerreError), atomic_write(cache) as file:
        np.savez(file, key=np.array(key), **arrays)  # pyright: ignore[reportArgumentType]


def scan_shards(files: Iterable[Path], record: Mapping[str, Any], problems: list[str], *, strict: bool = False) -> ShardIndex:
    """The index of shards from their headers. record: of their index.json, if there is one. problems: those that are known.

    One that cannot be read is a problem, or an OSError if `strict`.
    """
    listed = {each["name"]: each for each in record.get("shards", ())}
    labels: dict[str, int] = {name: number for number, name in enumerate(record.get("classes", ()))}
    parts, names, ends, digests, paths = [], [], [], [], []
    for file in files:
        paths.append(file)
        rows, shard_names = _scan_shard(file, labels, bool(record), problems, strict)
        values = np.frombuffer(rows, dtype=np.int64).reshape(-1, len(_COLUMNS)).T
        arrays = {name: column.astype(dtype) for (name, dtype), column in zip(_COLUMNS.items(), values, strict=True)}
        known = listed.get(file.name)
        if known is not None and known["bytes"] == file.stat().st_size:
            digests.append(known["sha256"][:16])
        else:
            classes = [*labels, ""]  # whose numbers depend on the other shards
            content = [json.dumps([classes[label] for label in arrays["label"]]).encode(), shard_names]
            content += [arrays[name].tobytes() for name in _COLUMNS if name != "label"]
            digests.append(hashlib.sha256(b"".join(content)).hexdigest()[:16])
        arrays["name_end"] = arrays["name_end"] + sum(map(len, names))
        parts.append(arrays)
        names.append(shard_names)
        ends.append(values.shape[1] + (ends[-1] if ends else 0))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    columns["label"][columns["label"] < 0] = len(labels)
    return ShardIndex(paths, np.array(ends), columns, b"".join(names), [*labels, ""], problems, digests)


def _scan_shard(file: Path, labels: dict[str, int], numbered: bool, problems: list[str], strict: bool) -> "tuple[array[int], bytes]":
    """The values of _COLUMNS for each image of a shard, one image after the other, and their names. numbered: labels are numbers of known
    ones."""
    rows, names, length, seen = array("q"), list[bytes](), 0, set[str]()
    damage: list[str] = []
    try:
        with file.open("rb", buffering=0) as opened:
            for key, parts in _samples(file, damage, problems):
                image = _first(parts, SUFFIXES)
                if image is None:
                    problems.append(f"{file.name}/{key} has no image")
                    continue
                if key in seen:
                    problems.append(f"{file.name}/{key} occurs twice")
                    continue
                seen.add(key)
                name = (key + image).encode("utf-8", "surrogateescape")
                length += len(name)
                text = _first(parts, CAPTION_SUFFIXES)
                caption = parts.get(text or ".json", _NO_CAPTION)
                kind = 0 if not caption[2] else 1 if text else 2  # a CaptionKind; its names would take longer
                label = -1
                if ".cls" in parts:
                    _, offset, size = parts[".cls"]
                    label = _label(os.pread(opened.fileno(), size, offset), labels, numbered)
                rows.extend((*parts[image][1:], *caption[1:], kind, label, length))
                names.append(name)
    except OSError as error:
        if strict:
            raise
        damage.append(f"cannot be read ({error.strerror or error})")
    problems += [f"{file.name} {each}" for each in damage]
    return rows, b"".join(names)


def _first(parts: Iterable[str], suffixes: Container[str]) -> str | None:
    for part in parts:
        if part in suffixes:
            return part
    return None


def _samples(file: Path, damage: list[str], problems: list[str]) -> Iterator[tuple[str, dict[str, TarEntry]]]:
    """(name, files by suffix) of each sample of a shard."""
    last, parts = "", dict[str, TarEntry]()
    for entry in scan_tar(file, damage):
        name = entry[0]
        stem = name.rfind("/") + 1
        dot = name.find(".", stem)
        if dot <= stem:  # no name, or no suffix
            continue
        key, suffix = name[:dot], name[dot:].lower()
        if key != last:
            if parts:
                yield last, parts
            last, parts = key, {}
        if suffix in parts:
            problems.append(f"{file.name}/{name} occurs twice")
        else:
            parts[suffix] = entry
    if parts:
        yield last, parts


def _label(content: bytes, labels: dict[str, int], numbered: bool) -> int:
    """The number of a class: as it is written, or that of its text."""
    text = content.decode("utf-8", "replace").strip()
    if numbered:
        return int(text) if text.isdecimal() and int(text) < len(labels) else -1
    return labels.setdefault(text, len(labels)) if text else -1
