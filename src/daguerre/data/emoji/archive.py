"""The archive of rendered emoji: a zip file of lossless WebP images and an index.

    index.json          [{"text", "names", "group", "subgroup"}, ...]
    pictures/0000.webp  RGBA, cropped, with the original pixels of the font (which compress four times better than resized ones),
                        in the order of the index

Images are rendered with Noto Color Emoji (SIL Open Font License 1.1); names and groups are from Unicode (Unicode data licence); see NOTICE.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError

ARCHIVE_SIZE = 128  # pixels
_MIN_CROP = 112  # smaller crops are not enlarged, so that a small square emoji stays small
ARCHIVE = Path(__file__).parents[2] / "assets" / "emoji-pictures.zip"


@dataclass(frozen=True)
class EmojiEntry:
    """One emoji image: its characters, official names (several if emoji share the image), group and subgroup."""

    text: str
    names: tuple[str, ...]
    group: str
    subgroup: str


def write_archive(path: Path, entries: Sequence[EmojiEntry], images: Sequence[Image.Image]) -> None:
    """Write entries and their RGBA images atomically; the same input gives the same bytes."""
    lines = ",\n".join(json.dumps(asdict(entry), ensure_ascii=False) for entry in entries)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, "index.json", f"[\n{lines}\n]\n".encode(), zipfile.ZIP_DEFLATED)
        for number, image in enumerate(images):
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", lossless=True, quality=75, method=6)
            _add(archive, f"pictures/{number:04}.webp", buffer.getvalue(), zipfile.ZIP_STORED)


def _add(archive: zipfile.ZipFile, name: str, content: bytes, compression: int) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content, compress_type=compression)


def read_index(path: Path = ARCHIVE) -> tuple[EmojiEntry, ...]:
    """Read names and groups without decoding images."""
    with _open(path) as archive:
        entries = json.loads(archive.read("index.json"))
    return tuple(EmojiEntry(e["text"], tuple(e["names"]), e["group"], e["subgroup"]) for e in entries)


@lru_cache(maxsize=2)
def read_images(path: Path) -> np.ndarray:
    """All images, centred in squares, decoded once per process: uint8 (N, side, side, 4), premultiplied alpha, read-only."""
    entries = read_index(path)
    images = np.empty((len(entries), ARCHIVE_SIZE, ARCHIVE_SIZE, 4), dtype=np.uint8)
    with _open(path) as archive:
        for number in range(len(entries)):
            with Image.open(io.BytesIO(archive.read(f"pictures/{number:04}.webp")), formats=("WEBP",)) as image:
                images[number] = np.asarray(_centred_square(image))
    np.minimum(images[..., :3], images[..., 3:], out=images[..., :3])  # the resize filter overshoots at edges
    images.flags.writeable = False
    return images


def _centred_square(image: Image.Image) -> Image.Image:
    """Centre an image in a transparent square of ARCHIVE_SIZE, with premultiplied alpha so that transparent pixels do not affect edges."""
    side = max(*image.size, _MIN_CROP)
    square = Image.new("RGBA", (side, side))
    square.paste(image.convert("RGBA"), ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGBa").resize((ARCHIVE_SIZE, ARCHIVE_SIZE), Image.Resampling.LANCZOS)


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DaguerreError(
            f"Cannot read the emoji archive {path} ({error}); create it with python -m daguerre.data.emoji.render."
        ) from error
