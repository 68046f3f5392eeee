"""Fetch a file from an address: by http or https with the standard library, from other file systems with an installed fsspec package.

By http and https, only the given address and what it redirects to are contacted. A redirect keeps its scheme, and does not lead from a
public address to one in a local network. What may be a short interruption is tried again after growing pauses.
"""

import hashlib
import ipaddress
import re
import socket
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
MAX_INDEX_BYTES = 1_000_000_000
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
    """Size of a file in bytes, and a text that changes when the server says that it has changed; "" if it says nothing."""

    bytes: int
    version: str


def shown(address: str) -> str:
    """An address for messages: without its query, which may hold a key, and without a user name and password."""
    return re.sub(r"(?<=://)[^/?]*@", "", address).partition("?")[0]


def read_address(address: str) -> bytes:
    """The content of a file of at most MAX_INDEX_BYTES. Raises FetchError."""

    def read() -> bytes:
        with _open(address) as (stream, size, _):
            content = stream.read(MAX_INDEX_BYTES + 1)
        if len(content) > MAX_INDEX_BYTES:
            raise FetchError(f"{shown(address)} has more than {MAX_INDEX_BYTES / 1e9:g} GB, too much for an index of shards.")
        if size not in (None, len(content)):
            raise ConnectionError(f"the connection ended after {len(content)} of {size} bytes")
        return content

    return _attempts(address, read)


def file_state(address: str) -> FileState:
    """The size and version of a file, without its content. Raises FetchError, also if the server does not state the size."""

    def ask() -> FileState:
        with _open(address, "HEAD") as (_, size, version):
            if size is None:
                raise FetchError(f"The server does not state the size of {shown(address)} (no Content-Length); use a server that sends it.")
            return FileState(size, version)

    return _attempts(address, ask)


def download(address: str, path: Path, expected: FileState, sha256: str | None = None) -> None:
    """Write a file of this size and, if they are known, version and hash to `path`, an existing file of that size.

    Raises:
        FetchError: it cannot be fetched or written, or has another size, version or hash.
    """
    _attempts(address, lambda: _download(address, path, expected, sha256))


def _download(address: str, path: Path, expected: FileState, sha256: str | None) -> None:
    digest, received, size = hashlib.sha256(), 0, expected.bytes
    with _open(address) as (stream, announced, version), path.open("r+b") as file:
        if announced not in (None, size):
            raise _changed(address, f"{announced} bytes, not {size}")
        if expected.version and version and version != expected.version:
            raise _changed(address, "another version than at the start")
        while chunk := stream.read(_CHUNK):
            received += len(chunk)
            if received > size:
                raise _changed(address, f"more than {size} bytes")
            digest.update(chunk)
            try:
                file.write(chunk)
                file.flush()  # here, where an error of the disk is not one of the connection
            except OSError as error:
                raise FetchError(str(cannot_write(path.parent, error))) from error
    if received != size:
        raise ConnectionError(f"the connection ended after {received} of {size} bytes")
    if sha256 not in (None, digest.hexdigest()):
        raise FetchError(f"{shown(address)} has another SHA-256 than index.json lists: it has changed. Restore it, or write both again.")


def _changed(address: str, how: str) -> FetchError:
    return FetchError(f"{shown(address)} has {how}: it has changed. Start again to use the new one.")


class _SafeRedirects(HTTPRedirectHandler):
    """Follows redirects only to the same scheme, and from a public host only to public hosts: stores redirect to other hosts."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        redirects = f"{shown(req.full_url)} redirects to {shown(newurl)}"
        if new.scheme != old.scheme:
            raise FetchError(f"{redirects}: another scheme, which is not followed.")
        if new.hostname != old.hostname and _is_public(old.hostname) and not _is_public(new.hostname):
            raise FetchError(f"{redirects}: an address in a local network, which is not followed.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_public(host: str | None) -> bool:
    """Whether a host is outside of this machine and of local networks. A name that only a proxy can resolve counts as public."""
    try:
        found = {ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in socket.getaddrinfo(host, None)}
    except OSError:
        return bool(host)
    return all((getattr(each, "ipv4_mapped", None) or each).is_global for each in found)


@contextmanager
def _open(address: str, method: str = "GET") -> Iterator[tuple[Any, int | None, str]]:
    """The stream of a file, its size if it is known, and its version."""
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        if parts.username is not None:
            raise ValueError("a user name and password are not sent; use an address without them, or with a key in its query")
        request = Request(address, method=method, headers={"Accept-Encoding": "identity", "User-Agent": "daguerre"})
        with build_opener(_SafeRedirects).open(request, timeout=TIMEOUT) as response:
            length, version = response.headers["Content-Length"], response.headers["ETag"] or response.headers["Last-Modified"]
            yield response, int(length) if length else None, (version or "").removeprefix("W/")
        return
    from fsspec.core import url_to_fs

    if "::" in address:
        raise ValueError("addresses of files inside other files are not read")
    files, path = url_to_fs(address)
    state = files.info(path)
    version = state.get("ETag") or state.get("LastModified") or state.get("mtime") or state.get("created")
    with files.open(path, "rb") as stream:
        yield stream, state["size"], str(version or "")


def _attempts(address: str, work: Callable[[], T]) -> T:
    """The result of `work`, which is tried again after an error that may pass."""
    for pause in (*PAUSES, None):
        missing = passes = unconnected = False
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
            reason, passes, unconnected = str(getattr(cause, "strerror", None) or cause or type(error).__name__), True, True
        except Exception as error:  # the packages behind fsspec have errors of their own
            reason = f"{type(error).__name__}: {error}"
        if pause is None or not passes:
            tried = f" after {len(PAUSES) + 1} attempts" if passes else ""
            hint = " Check the address and the connection." if missing or unconnected else ""
            raise FetchError(f"Cannot fetch {shown(address)}{tried}: {reason}.{hint}", missing=missing)
        print(f"{shown(address)}: {reason}; next attempt in {pause} s", file=sys.stderr)
        time.sleep(pause)
    raise AssertionError  # the last pause is None
