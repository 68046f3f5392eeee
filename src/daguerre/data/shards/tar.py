"""Find the files in a tar file from its headers alone, also in a damaged one.

A header has 512 bytes: name at 0, size at 124, checksum at 148, kind at 156 (POSIX.1-1988 "ustar"; longer names in POSIX.1-2001 "pax"
records or a GNU "L" entry). The content follows, padded to 512 bytes; two blocks of zeros end the file. The headers of an ordinary file are
checked together, as an array; one by one takes five times as long, and `tarfile` of the standard library fifty times.
"""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from zlib import adler32

import numpy as np

_BLOCK = 512
_BUFFER = 1 << 14  # bytes per read: more would read much of each image
_MODULUS = 65521  # of Adler-32, whose lower half is 1 + the sum of the bytes
_TOGETHER = 4096  # headers that are checked at a time
_REGULAR = b"0\x007"  # kinds of entries that are files
_PAX_RECORD = re.compile(rb"\d+ (path|size)=([^\n]*)\n")


TarEntry = tuple[str, int, int]  # name, offset and length in bytes; a named tuple takes longer to make than to find


def scan_tar(path: Path, problems: list[str]) -> Iterable[TarEntry]:
    """The files of a tar file in their order; appends to `problems` what is damaged, and goes on after it.

    Raises OSError if it cannot be read.
    """
    ordinary = _scan_ordinary(path)
    return _scan_any(path, problems) if ordinary is None else ordinary


def _scan_ordinary(path: Path) -> list[TarEntry] | None:
    """The files of a tar file, if it has no damage, no long names and no files of 8 GiB."""
    found, headers, offsets, lengths = list[TarEntry](), list[bytes](), list[int](), list[int]()
    with path.open("rb", buffering=0) as file:
        handle, end = file.fileno(), os.fstat(file.fileno()).st_size
        position, buffer, start = 0, b"", 0
        while position + _BLOCK <= end:
            header = buffer[position - start : position - start + _BLOCK]
            if len(header) < _BLOCK:
                buffer, start = os.pread(handle, _BUFFER, position), position
                header = buffer[:_BLOCK]
            ended = not header[0]
            if ended or len(headers) == _TOGETHER:
                names = _checked_names(headers)
                if names is None or (ended and any(header)):
                    return None
                found += compress(zip(names, offsets, lengths, strict=True), [header[156] in _REGULAR for header in headers])
                headers, offsets, lengths = [], [], []
                if ended:
                    return found
            try:
                length = int(header[124:135], 8)
            except ValueError:
                return None
            position += _BLOCK
            if not 0 <= length <= end - position or header[156] == b"L"[0]:
                return None
            if header[156] == b"x"[0] and _PAX_RECORD.search(os.pread(handle, length, position)):
                return None
            headers.append(header)
            offsets.append(position)
            lengths.append(length)
            position += (length + _BLOCK - 1) & -_BLOCK
    return None


def _checked_names(headers: Sequence[bytes]) -> list[str] | None:
    """The names in headers, if all are valid and as usual: six digits of checksum, a name without prefix, and 11 digits of size."""
    table = np.frombuffer(b"".join(headers), dtype=np.uint8).reshape(-1, _BLOCK)
    digits = table[:, 148:154] - np.uint8(48)
    sums = table.sum(axis=1, dtype=np.int64) - table[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * 32
    valid = (digits < 8).all() and (digits @ (8 ** np.arange(5, -1, -1)) == sums).all()
    names = np.ascontiguousarray(table[:, :100]).view("S100").reshape(-1).tolist()
    joined = b"\n".join(names)
    if not valid or table[:, 345].any() or not np.isin(table[:, 135], (0, 32)).all() or b"\0" in joined:
        return None
    split = _text(joined).split("\n") if headers else []
    return split if len(split) == len(headers) else None


def _scan_any(path: Path, problems: list[str]) -> Iterable[TarEntry]:
    """The files of any tar file, header by header."""
    with path.open("rb", buffering=0) as file:
        handle, end = file.fileno(), os.fstat(file.fileno()).st_size
        position, name, size = 0, "", -1
        buffer, start = b"", 0
        while position + _BLOCK <= end:
            header = buffer[position - start : position - start + _BLOCK]
            if len(header) < _BLOCK:
                buffer, start = os.pread(handle, _BUFFER, position), position
                header = buffer[:_BLOCK]
            kind = header[156]
            if not _is_valid(header):
                if not any(header):
                    return
                problems.append(f"damaged at byte {position}")
                position, name, size = _next_header(handle, position, end), "", -1
                continue
            length = _number(header[124:136]) if size < 0 else size
            position += _BLOCK
            if kind in b"xL":
                content = os.pread(handle, min(length, end - position), position)
                if kind == b"L"[0]:
                    name = _text(content.rstrip(b"\0"))
                else:
                    records = dict(_PAX_RECORD.findall(content))
                    name = _text(records.get(b"path", b"")) or name
                    size = int(records.get(b"size", b"-1"))
            else:
                if kind in _REGULAR:
                    found = name or _name(header)
                    if position + length > end:
                        problems.append(f"ends within {found}")
                        return
                    yield found, position, length
                name, size = "", -1
            position += -(-length // _BLOCK) * _BLOCK
    problems.append("has no end")


def _is_valid(header: bytes) -> bool:
    """Whether a header has a size and the right checksum: the sum of its bytes, with spaces in the field of the checksum itself."""
    try:
        expected, size = int(header[148:156].rstrip(b" \0"), 8), _number(header[124:136])
    except ValueError:
        return False
    return size >= 0 and (adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF) - 1 == expected % _MODULUS


def _next_header(handle: int, position: int, end: int) -> int:
    """The position of the next valid header after a damaged one; the end if there is none."""
    for following in range(position + _BLOCK, end - _BLOCK + 1, _BLOCK):
        header = os.pread(handle, _BLOCK, following)
        if header[257:262] == b"ustar" and _is_valid(header):
            return following
    return end


def _number(field: bytes) -> int:
    """A size: octal digits, or for 8 GiB and more a binary number after a set bit."""
    return int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.rstrip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
