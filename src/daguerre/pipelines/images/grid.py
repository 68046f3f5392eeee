"""Labelled grids and tables of images, with the font included in Pillow."""

import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

MIN_CELL = 128  # pixels; smaller images are enlarged so that labels fit below them
GAP = 8
BACKGROUND, TEXT_COLOUR = "white", "black"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
CellBox = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class ImageTable(NamedTuple):
    """A table of images, and the box of each image in it, row by row."""

    image: Image.Image
    boxes: list[list[CellBox]]


def labelled_grid(images: Sequence[Image.Image], labels: Sequence[str], columns: int | None = None) -> Image.Image:
    """One image of a grid of images, row by row, each above its label, which wraps to the image's width.

    Args:
        images: of one size.
        labels: one for each image.
        columns: images in a row; None makes the grid nearly square.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    starts = range(0, len(images), columns)
    return image_table([images[i : i + columns] for i in starts], [labels[i : i + columns] for i in starts]).image


def image_table(
    images: Sequence[Sequence[Image.Image]],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> ImageTable:
    """Rows of images under headings, with a heading at the start of each row and a caption below each image. Texts wrap.

    Args:
        images: of one size; the last row may be shorter.
        captions: one for each image; None is no captions.
        rows, columns: one heading for each row and column; empty is no headings.
    """
    first, across = images[0][0], max(map(len, images))
    scale = math.ceil(MIN_CELL / first.width)
    width, height = first.width * scale, first.height * scale
    font = ImageFont.load_default(size=max(12, width // 14))
    line_height = math.ceil(sum(font.getmetrics()) * 1.1) if isinstance(font, ImageFont.FreeTypeFont) else 14
    above = [wrap(supported_text(heading), font, width) for heading in columns]
    before = [wrap(supported_text(heading), font, width) for heading in rows]
    below = [[wrap(supported_text(caption), font, width) for caption in row] for row in captions or [()] * len(images)]
    top = max(map(len, above)) * line_height + GAP if above else 0
    margin = math.ceil(max(font.getlength(line) for lines in before for line in lines)) + 2 * GAP if before else 0
    caption_heights = [max(map(len, row), default=0) * line_height for row in below]

    size = margin + across * (width + GAP) + GAP, top + sum(caption_heights) + len(images) * (height + 2 * GAP) + GAP
    table = Image.new("RGB", size, BACKGROUND)
    canvas = ImageDraw.Draw(table)
    for column, lines in enumerate(above):
        centre = margin + GAP + column * (width + GAP) + width / 2
        _write(canvas, (centre, GAP + top - GAP - len(lines) * line_height), lines, font, line_height, "ma")  # aligned at the bottom
    boxes: list[list[CellBox]] = []
    for number, row in enumerate(images):
        y = top + GAP + number * (height + 2 * GAP) + sum(caption_heights[:number])
        boxes.append([])
        if before:
            middle = y + (height - len(before[number]) * line_height) / 2
            _write(canvas, (margin - GAP / 2, middle), before[number], font, line_height, "ra")
        for column, image in enumerate(row):
            x = margin + GAP + column * (width + GAP)
            table.paste(image.resize((width, height), Image.Resampling.LANCZOS) if image.size != (width, height) else image, (x, y))
            boxes[-1].append((x, y, x + width, y + height))
            if captions:
                _write(canvas, (x + width / 2, y + height + GAP // 2), below[number][column], font, line_height, "ma")
    return ImageTable(table, boxes)


def _write(canvas: ImageDraw.ImageDraw, at: tuple[float, float], lines: Sequence[str], font: Font, line_height: int, anchor: str) -> None:
    for i, line in enumerate(lines):
        canvas.text((at[0], at[1] + i * line_height), line, TEXT_COLOUR, font, anchor=anchor)


def supported_text(text: str) -> str:
    """A text reduced to the ASCII letters of the font: accents are dropped, other scripts become "?"."""
    dashes = text.translate({ord(sign): "-" for sign in "‐‑‒–—·"} | {ord("×"): "x"})
    letters = (letter for letter in unicodedata.normalize("NFKD", dashes) if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "?" for letter in letters)


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Break a text into lines no wider than `width` pixels, between words if possible, else inside a word."""
    lines = [""]
    for word in text.split():
        if font.getlength(f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
