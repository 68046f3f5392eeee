"""Shards at an address, each fetched into the user's cache folder when it is first needed.

    https://host/path/shard-{000000..000099}.tar    a range, as in webdataset
    https://host/path/                              what `write_shards` wrote, by its index.json

A shard is in a folder of its own, named by a hash of its address and content, so a changed one is never mistaken for the old one.
"""

import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from daguerre.atomic_io import atomic_path
from daguerre.data.order import SHUFFLED_SHARDS
from daguerre.data.shards.fetch import FetchError, FileState, download, file_state, read_address, shown
from daguerre.errors import DaguerreError

SHARD_INDEX = "index.json"  # next to shards that `write_shards` wrote
SHARD_MEMBERS = "members.npz"  # likewise: where each image is
SHARD_FORMAT = "daguerre shards 1"
MAX_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shard_cache() -> Path:
    """The folder of fetched shards and of what is known about shards."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daguerre" / "shards"


def index_record(content: bytes) -> dict[str, Any]:
    """The values of an index.json; empty if it is something else."""
    with suppress(ValueError, RecursionError):
        record = json.loads(content)
        return record if isinstance(record, dict) and record.get("format") == SHARD_FORMAT else {}
    return {}


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address and its path in the cache.

    version: see `FileState`. cache_bytes: the largest size of all shards in the cache.
    """

    address: str
    path: Path
    bytes: int
    sha256: str | None
    version: str
    cache_bytes: float

    @property
    def is_fetched(self) -> bool:
        with suppress(OSError):
            return self.path.stat().st_size == self.bytes
        return False

    def open(self) -> BinaryIO:
        """The file, fetched if it is not in the cache. It can be read to its end even if another process removes it. Raises FetchError."""
        for _ in range(3):
            self.fetch()
            with suppress(FileNotFoundError):
                return self.path.open("rb")
        raise FetchError(f"{self.path} is removed again and again by another process; give a larger --shard-cache-size.")

    def fetch(self) -> None:
        """Fetch the file unless it is in the cache, one process at a time. Raises FetchError."""
        if self.is_fetched:
            with suppress(OSError):  # another user's file
                os.utime(self.path, ns=(time.time_ns(), 0))  # the time of its last use; a fetched copy has no date
            return
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if self.is_fetched:
                    return
                for leftover in folder.glob(".daguerre-*"):  # of a process that was killed
                    leftover.unlink()
                with atomic_path(self.path) as temporary:
                    with _locked(shard_cache()), temporary.open("wb") as file:
                        _make_room(self.bytes, self.cache_bytes)
                        file.truncate(self.bytes)  # so that other processes count it
                    download(self.address, temporary, FileState(self.bytes, self.version), self.sha256)
                    os.utime(temporary, ns=(time.time_ns(), 0))
        except FetchError:
            raise
        except (DaguerreError, OSError) as error:
            raise FetchError(f"Cannot keep {shown(self.address)}: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a folder. The system releases the lock of a process that ends."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftover(path: Path) -> None:
    """Remove a part of a shard, unless the process that fetches it is at work."""
    with suppress(OSError), (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def _make_room(needed: int, cache_bytes: float) -> None:
    """Remove the shards that were used least recently, until one of `needed` bytes fits into the limit, also with those being fetched."""
    fetched = 0
    for path in shard_cache().glob("*/.daguerre-*"):
        with suppress(FileNotFoundError):
            _remove_leftover(path)
            fetched += path.stat().st_size
    kept: list[tuple[int, int, Path]] = []
    for path in shard_cache().glob("*/*.tar"):
        with suppress(FileNotFoundError):
            state = path.stat()
            kept.append((state.st_atime_ns, state.st_size, path))
    excess = sum(size for _, size, _ in kept) + fetched + needed - cache_bytes
    for _, size, path in sorted(kept):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
    _require_room(needed)


def _require_room(needed: int) -> None:
    existing = next(folder for folder in (shard_cache(), *shard_cache().parents) if folder.is_dir())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise FetchError(
            f"A shard has {needed / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free for {shard_cache()}. Free some "
            "space, limit the fetched shards with --shard-cache-size, or set XDG_CACHE_HOME to a folder on another disk."
        )


@dataclass(frozen=True)
class RemoteShards:
    """The shards of an address, sorted by name; the values of their index.json; and the file that says where each image is, if any."""

    files: Sequence[RemoteFile]
    record: Mapping[str, Any]
    members: RemoteFile | None

    def announce(self, address: str) -> None:
        """Print how much will be fetched, once on each machine. Raises FetchError if the disk or the limit is too small."""
        sizes = sorted(file.bytes for file in self.files)
        least = sum(sizes[-2 * SHUFFLED_SHARDS :])
        if (limit := self.files[0].cache_bytes) < least:
            raise FetchError(
                f"--shard-cache-size is {limit / 1e9:g} GB, but training needs {min(len(sizes), 2 * SHUFFLED_SHARDS)} of these shards at a "
                f"time; give at least {math.ceil(least / 1e7) / 100:g}."
            )
        missing = [file.bytes for file in self.files if not file.is_fetched]
        if missing:
            _require_room(max(missing))
            if os.environ.get("LOCAL_RANK", "0") == "0":
                amount = f"{sum(missing) / 1e9:.3g} GB in {len(missing)} of {len(sizes)} shards"
                print(f"fetched when needed: {amount} of {shown(address)}, to {shard_cache()}", file=sys.stderr)


def find_remote(address: str, cache_gigabytes: float | None = None) -> RemoteShards:
    """The shards of an address: a range of .tar files, or a folder or index.json that `write_shards` wrote.

    Raises FetchError if there are none, their index is damaged, or it does not list a shard.
    """
    head, question, query = address.partition("?")
    limit = math.inf if cache_gigabytes is None else 1e9 * cache_gigabytes
    is_range = head.endswith(".tar")
    folder = head.rpartition("/")[0] if is_range or head.endswith(".json") else head.rstrip("/")

    def within(name: str) -> str:
        return f"{folder}/{name}{question}{query}"

    record = _read_record(within(SHARD_INDEX), required=not is_range)
    listed = {each["name"]: each for each in record.get("shards", ())}
    addresses = _expand(head, question + query) if is_range else [within(name) for name in listed]
    files = [_cached(*state, limit) for state in _states(addresses, listed)]
    members = record.get("members") if {file.path.name for file in files} == {*listed} else None
    found = members and _cached(within(SHARD_MEMBERS), members["bytes"], members["sha256"], "", limit)
    return RemoteShards(files, record, found or None)


def _read_record(address: str, *, required: bool) -> dict[str, Any]:
    try:
        content = read_address(address)
    except FetchError as error:
        if not error.missing or required:
            hint = " For other shards, give their range: 'https://host/path/shard-{000000..000099}.tar'." if error.missing else ""
            raise FetchError(f"{error}{hint}") from error
        return {}
    record = index_record(content)
    if not record and not required:
        return {}
    if "shards" not in record or not _is_complete(record):
        raise FetchError(f"{shown(address)} is not the finished index of shards that `daguerre shard` writes.")
    return record


def _is_complete(record: Mapping[str, Any]) -> bool:
    """Whether the values of an index.json have the right types; its names become paths."""
    try:
        files = [*record["shards"], *([{**record["members"], "name": "0.tar"}] if "members" in record else [])]
        return (
            bool(record["shards"])
            and all(isinstance(name, str) for name in record.get("classes", ()))
            and all(
                re.fullmatch(r"\w[\w.-]*\.tar", each["name"])
                and type(each["bytes"]) is int
                and each["bytes"] > 0
                and re.fullmatch(r"[0-9a-f]{64}", each["sha256"])
                for each in files
            )
        )
    except (TypeError, KeyError):
        return False


def _states(addresses: Sequence[str], listed: Mapping[str, Any]) -> list[tuple[str, int, str | None, str]]:
    """(address, bytes, SHA-256 if it is listed, version if not) of shards, sorted by name."""

    def state(address: str) -> tuple[str, int, str | None, str]:
        if known := listed.get(_name(address)):
            return address, known["bytes"], known["sha256"], ""
        found = file_state(address)
        return address, found.bytes, None, found.version

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(state, sorted(addresses, key=_name)))


def _expand(address: str, query: str) -> list[str]:
    """The addresses of a range such as {000..099}; of several ranges, all combinations."""
    parts = _RANGE.split(address)
    ranges = [(first, int(first), int(last)) for first, last in zip(parts[1::3], parts[2::3], strict=True)]
    count = math.prod(max(0, last - first + 1) for _, first, last in ranges)
    if not 0 < count <= MAX_SHARDS:
        raise FetchError(f"{shown(address)} names {count} shards; a range goes from its first to its last number: {{000000..000099}}.")
    numbers = [[f"{n:0{len(text)}d}" for n in range(first, last + 1)] for text, first, last in ranges]
    return ["".join(itertools.chain(*zip(parts[::3], (*chosen, ""), strict=True))) + query for chosen in itertools.product(*numbers)]


def _cached(address: str, size: int, sha256: str | None, version: str, cache_bytes: float) -> RemoteFile:
    folder = hashlib.sha256(json.dumps([shown(address), size, sha256 or version]).encode()).hexdigest()[:16]
    return RemoteFile(address, shard_cache() / folder / _name(address), size, sha256, version, cache_bytes)


def _name(address: str) -> str:
    return shown(address).rpartition("/")[2]
