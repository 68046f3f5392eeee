"""Render the emoji of the built-in dataset into the archive that ships with the package.

    python -m daguerre.data.emoji.render            # Debian: fonts-noto-color-emoji, unicode-data, libfribidi0

Sequences and names come from Unicode's `emoji-test.txt` (UTS #51), images from Noto Color Emoji, whose only bitmap size is 109 pixels.
Sequences (families, flags, professions) are shaped by raqm; a sequence that the font lacks becomes several glyphs, is wider than one cell,
and is left out. Only this file needs the font; everything else reads the archive.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from daguerre.data.emoji.archive import ARCHIVE, EmojiEntry, write_archive
from daguerre.errors import DaguerreError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
FONT_SIZE = 109  # the only bitmap size of the font
CELL_SIZE = 136  # advance width of one emoji
_LINE = re.compile(r"(?P<points>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\d+\.\d+ (?P<name>.+)")


@dataclass(frozen=True)
class EmojiListing:
    """One line of `emoji-test.txt`: characters, official name, group and subgroup."""

    text: str
    name: str
    group: str
    subgroup: str


def listed_emoji(path: Path, *, skin_tones: bool = False) -> Iterator[EmojiListing]:
    """Yield the fully-qualified emoji of an `emoji-test.txt`, in its order; `skin_tones` about doubles their number."""
    if not path.is_file():
        raise DaguerreError(f"There is no emoji list at {path}; install Debian's unicode-data, or give another file with --emoji-test.")
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif (match := _LINE.fullmatch(line)) and (skin_tones or "skin tone" not in match["name"]):
            yield EmojiListing("".join(chr(int(point, 16)) for point in match["points"].split()), match["name"], group, subgroup)


def open_font(path: Path) -> ImageFont.FreeTypeFont:
    """Open the colour font with the raqm layout engine, which shapes sequences."""
    if not features.check("raqm") or not features.check("fribidi"):
        raise DaguerreError("Pillow cannot shape emoji sequences without raqm and fribidi; install Debian's libfribidi0.")
    if not path.is_file():
        raise DaguerreError(f"There is no font at {path}; install Debian's fonts-noto-color-emoji, or give another file with --font.")
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)


def render(font: ImageFont.FreeTypeFont, text: str) -> Image.Image | None:
    """Render one emoji as RGBA with the original pixels of the font, cropped; None if the font lacks it."""
    if not 0 < font.getlength(text) <= CELL_SIZE:
        return None
    canvas = Image.new("RGBA", (2 * CELL_SIZE, 2 * CELL_SIZE))
    ImageDraw.Draw(canvas).text((CELL_SIZE // 2, CELL_SIZE // 2), text, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    return canvas.crop(box) if box else None


def render_all(font_path: Path, list_path: Path, *, skin_tones: bool = False) -> tuple[list[EmojiEntry], list[Image.Image], list[str]]:
    """Render every emoji; those with identical images (the flags of Norway and Bouvet Island) become one entry with several names.

    Returns the entries, their images and the official names that the font lacks.
    """
    font = open_font(font_path)
    found: dict[bytes, tuple[list[EmojiListing], Image.Image]] = {}
    missing = []
    for emoji in listed_emoji(list_path, skin_tones=skin_tones):
        image = render(font, emoji.text)
        if image is None:
            missing.append(emoji.name)
        else:
            found.setdefault(np.asarray(image).tobytes(), ([], image))[0].append(emoji)
    entries = [EmojiEntry(same[0].text, tuple(e.name for e in same), same[0].group, same[0].subgroup) for same, _ in found.values()]
    return entries, [image for _, image in found.values()], missing


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the emoji archive of the built-in dataset.")
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--emoji-test", type=Path, default=EMOJI_TEST)
    parser.add_argument("--skin-tones", action="store_true", help="Also render all five skin tones, about twice as many images.")
    parser.add_argument("--out", type=Path, default=ARCHIVE)
    options = parser.parse_args()
    try:
        entries, images, missing = render_all(options.font, options.emoji_test, skin_tones=options.skin_tones)
        write_archive(options.out, entries, images)
    except DaguerreError as error:
        raise SystemExit(str(error)) from error
    print(f"{len(entries)} images, {options.out.stat().st_size / 1e6:.1f} MB: {options.out}")
    if missing:
        print(f"not in this font: {', '.join(missing)}")


if __name__ == "__main__":
    main()
