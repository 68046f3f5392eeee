"""Fetch a file from an address: by http or https with the standard library, from other file systems with an installed fsspec package.

Nothing but the given address is contacted; a redirect keeps its scheme. What may be a short interruption is tried again after growing
pauses.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from daguerre.atomic_io import cannot_write
from daguerre.errors import DaguerreError

TIMEOUT = 60  # seconds without an answer
PAUSES = (1, 4, 16)  # seconds before each new attempt
_CHUNK = 1 << 20
_MISSING = (403, 404, 410)  # S3 answers 403 for a missing file unless the folder may be listed
_PASSING = (408, 425, 429)  # and from 500 on

T = TypeVar("T")


class FetchError(DaguerreError):
    """A file at an address cannot be fetched. missing: it does not exist there, or may not be read."""

    def __init__(self, message: str, *, missing: bool = False):
        super().__init__(message)
        self.missing = missing


class FileState(NamedTuple):
    """Size of a file in bytes, and a text that changes when the server says that it has changed."""

    bytes: int
    version: str


def shown(address: str) -> str:
    """An address for messages: without its query, which may hold a key."""
    return address.partition("?")[0]


def read_address(address: str) -> bytes:
    """The content of a small file. Raises FetchError."""

    def read() -> bytes:
        with _open(address) as (stream, _, _):
            return stream.read()

    return _attempts(address, read)


def file_state(address: str) -> FileState:
    """The size and version of a file, without its content. Raises FetchError, also if the server does not tell the size."""

    def ask() -> FileState:
        with _open(address, "HEAD") as (_, size, version):
            if size is None:
                raise FetchError(f"The server does not tell the size of {shown(address)} (Content-Length), which is needed.")
            return FileState(size, version)

    return _attempts(address, ask)


def download(address: str, path: Path, size: int, sha256: str | None = None) -> None:
    """Write a file of `size` bytes, with this hash if it is known, to `path`.

    Raises:
        FetchError: it cannot be fetched or written, or has another size or hash.
    """
    _attempts(address, lambda: _download(address, path, size, sha256))


def _download(address: str, path: Path, size: int, sha256: str | None) -> None:
    digest, received = hashlib.sha256(), 0
    with _open(address) as (stream, announced, _), path.open("wb") as file:
        if announced not in (None, size):
            raise FetchError(f"{shown(address)} has {announced} bytes, not {size}: it has changed. Start again to use the new one.")
        while received <= size and (chunk := stream.read(_CHUNK)):
            received += len(chunk)
            digest.update(chunk)
            try:
                file.write(chunk)
            except OSError as error:
                raise FetchError(str(cannot_write(path.parent, error))) from error
    if received != size:
        raise ConnectionError(f"the connection ended after {received} of {size} bytes")
    if sha256 not in (None, digest.hexdigest()):
        raise FetchError(f"{shown(address)} has another SHA-256 than index.json lists: it has changed. Restore it, or write both again.")


class _SameScheme(HTTPRedirectHandler):
    """Follows redirects only to the same scheme."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            raise FetchError(f"{shown(req.full_url)} redirects to {shown(newurl)}: another scheme, which is not followed.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _open(address: str, method: str = "GET") -> Iterator[tuple[Any, int | None, str]]:
    """The stream of a file, its size if it is known, and its version."""
    if urlsplit(address).scheme in ("http", "https"):
        request = Request(address, method=method, headers={"Accept-Encoding": "identity", "User-Agent": "daguerre"})
        with build_opener(_SameScheme).open(request, timeout=TIMEOUT) as response:
            length, version = response.headers["Content-Length"], response.headers["ETag"] or response.headers["Last-Modified"]
            yield response, int(length) if length else None, version or ""
        return
    from fsspec.core import url_to_fs

    if "::" in address:
        raise ValueError("addresses of files inside other files are not read")
    files, path = url_to_fs(address)
    state = files.info(path)
    version = state.get("ETag") or state.get("LastModified") or state.get("mtime") or state.get("created")
    with files.open(path, "rb") as stream:
        yield stream, state["size"], str(version)


def _attempts(address: str, work: Callable[[], T]) -> T:
    """The result of `work`, which is tried again after an error that may pass."""
    for pause in (*PAUSES, None):
        missing = passes = False
        try:
            return work()
        except FetchError:
            raise
        except HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            missing, passes = error.code in _MISSING, error.code in _PASSING or error.code >= 500
        except FileNotFoundError:
            reason, missing = "there is no such file", True
        except (ImportError, ValueError, PermissionError) as error:  # a file system that needs another package, or that does not exist
            reason = str(error)
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason, passes = str(getattr(cause, "strerror", None) or cause or type(error).__name__), True
        except Exception as error:  # the packages behind fsspec have errors of their own
            reason = f"{type(error).__name__}: {error}"
        if pause is None or not passes:
            tried = f" after {len(PAUSES) + 1} attempts" if passes else ""
            raise FetchError(f"Cannot fetch {shown(address)}{tried}: {reason}. Check the address and the connection.", missing=missing)
        print(f"{shown(address)}: {reason}; next attempt in {pause} s", file=sys.stderr)
        time.sleep(pause)
    raise AssertionError  # the last pause is None
