"""Atomic writes: write to a temporary path, flush it to the disk, then rename it. A file is complete or does not exist.

    with atomic_write("apple.png") as file:
        image.save(file, "PNG")

A rename is atomic on one file system (POSIX `rename`), so neither a full disk nor a killed process leaves half a file.
"""

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from daguerre.errors import DaguerreError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder, which is renamed to `path` when the block ends without an error.

    A folder replaces an existing folder. After an error the temporary path is removed and `path` is unchanged.

    Raises:
        DaguerreError: the path cannot be written, or the disk is full.
    """
    path = expand_user(path)
    temporary = path.with_name(f".daguerre-{uuid4().hex[:8]}")  # short, because file systems limit names to 255 bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        publish(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _remove(temporary)


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished file or folder to the disk, then rename it to `path` in the same folder. Raises OSError."""
    _flush(temporary)
    _replace(temporary, path)
    _flush_entry(path.parent)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file that is renamed to `path` when the block ends without an error (see `atomic_path`).

    Raises:
        DaguerreError: the path cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def check_writable(path: str | Path) -> None:
    """Check before a long job that a file can be written to `path`; missing folders are created later.

    Raises:
        DaguerreError: it cannot be written.
    """
    path = expand_user(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # such as a name that is too long, or a loop of links
        raise cannot_write(path, error) from error
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    if not parent.is_dir():
        raise cannot_write(path, NotADirectoryError(errno.ENOTDIR, f"{parent} is not a folder"))
    if longest := next((part for part in path.parts if len(os.fsencode(part)) > os.pathconf(parent, "PC_NAME_MAX")), None):
        raise cannot_write(path, OSError(errno.ENAMETOOLONG, f"the name {longest[:20]!r}... is too long"))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def is_address(path: str | Path) -> bool:
    """Whether it is an address, such as https://host/path/, and not a path on this machine."""
    return "://" in str(path)


def expand_user(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` replaced by the home folder; unchanged if there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def free_path(path: Path, count: int = 1) -> Path:
    """The path, or the first of `name-2`, `name-3`, … that is free, so that no earlier file is overwritten.

    count: how many files are numbered after it (see `numbered_paths`).
    """
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2)))
    return next(name for name in names if not any(file.exists() for file in (name, *numbered_paths(name, count))))


def numbered_paths(path: Path, count: int) -> list[Path]:
    """The paths of so many files saved to one path: itself for one, else `name-1.png`, `name-2.png`, … next to it."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]


def check_overwrite(folder: Path, required_file: str, kind: str = "saved model") -> None:
    """Raise DaguerreError unless the folder is new, empty, or of this kind, which is recognised by `required_file`."""
    if folder.exists() and not (folder / required_file).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DaguerreError(f"'{folder}' exists and holds no {kind}, so it is not overwritten; name another folder.")


def cannot_write(path: Path, error: OSError) -> DaguerreError:
    """The error for a path that cannot be written."""
    reason = error.strerror or str(error)
    return DaguerreError(f"Cannot write '{path}': {reason}. Nothing was changed; free some space or choose another path.")


def _flush(path: Path) -> None:
    """Flush a file, or a folder with its contents, to the disk."""
    for entry in sorted(path.rglob("*"), reverse=True) if path.is_dir() else ():
        _flush_entry(entry)
    _flush_entry(path)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(new: Path, path: Path) -> None:
    if not (new.is_dir() and path.is_dir()):
        new.replace(path)
        return
    # A folder cannot replace a non-empty one, so the old one is renamed first, and renamed back if the second rename fails.
    old = path.with_name(f"{new.name}.old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
