"""Files that are either there whole or not there at all: written beside, flushed to the disk, then renamed over the name.

    with atomic_write("apple.png") as file:
        picture.save(file, "PNG")

A rename is atomic on one file system (POSIX `rename`), so neither a full disk nor a killed process leaves half a file behind.
"""

import errno
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
    """Yield a path beside `path` to write a file or a folder to; it takes the name `path` when the block ends well.

    A folder replaces the folder of that name. After any error nothing new is left, and what stood at `path` stands.

    Raises:
        DaguerreError: the place cannot be written, or the disk is full.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        _flush(beside)
        _replace(beside, path)
        _flush_entry(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _remove(beside)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends well (see `atomic_path`).

    Raises:
        DaguerreError: the place cannot be written, or the disk is full.
    """
    with atomic_path(path) as beside, beside.open("wb") as file:
        yield file


def check_writable(path: str | Path) -> None:
    """Ask before a long job whether a file could be written to `path`, missing folders being made.

    Raises:
        DaguerreError: it could not.
    """
    path = Path(path)
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    if not above.is_dir():
        raise cannot_write(path, NotADirectoryError(errno.ENOTDIR, f"{above} is not a folder"))
    if not os.access(above, os.W_OK | os.X_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def cannot_write(path: Path, error: OSError) -> DaguerreError:
    """Say in one sentence why `path` could not be written."""
    reason = error.strerror or str(error)
    return DaguerreError(f"Cannot write '{path}': {reason}. Nothing was changed there; free some space or choose another place.")


def _flush(path: Path) -> None:
    """Make the kernel put a file, or a folder with everything in it, on the disk."""
    for each in sorted(path.rglob("*"), reverse=True) if path.is_dir() else ():
        _flush_entry(each)
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
    # A folder cannot be renamed over a full one, so the old one steps aside first and comes back if the rename fails.
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
