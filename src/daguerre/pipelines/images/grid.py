"""A labelled grid of images, with the font included in Pillow."""

import math
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MIN_CELL = 128  # pixels; smaller images are enlarged so that labels fit below them
GAP = 8
BACKGROUND, TEXT_COLOUR = "white", "black"


def labelled_grid(images: Sequence[Image.Image], labels: Sequence[str], columns: int | None = None) -> Image.Image:
    """One image of a grid of images, row by row, each above its label, which wraps to the image's width.

    Args:
        images: of one size.
        labels: one for each image.
        columns: images in a row; None makes the grid nearly square.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = math.ceil(MIN_CELL / images[0].width)
    width, height = images[0].width * scale, images[0].height * scale
    font = ImageFont.load_default(size=max(12, width // 14))
    lines = [wrap(supported_text(label), font, width) for label in labels]
    line_height = math.ceil(sum(font.getmetrics()) * 1.1) if isinstance(font, ImageFont.FreeTypeFont) else 14
    rows = math.ceil(len(images) / columns)
    below = [max(len(cell) for cell in lines[row * columns : (row + 1) * columns]) * line_height for row in range(rows)]

    grid = Image.new("RGB", (columns * (width + GAP) + GAP, sum(below) + rows * (height + 2 * GAP) + GAP), BACKGROUND)
    canvas = ImageDraw.Draw(grid)
    for i, (image, cell) in enumerate(zip(images, lines, strict=True)):
        row, column = divmod(i, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + 2 * GAP) + sum(below[:row])
        grid.paste(image.resize((width, height), Image.Resampling.LANCZOS) if scale > 1 else image, (left, top))
        for j, line in enumerate(cell):
            canvas.text((left + width / 2, top + height + GAP // 2 + j * line_height), line, TEXT_COLOUR, font, anchor="ma")
    return grid


def supported_text(text: str) -> str:
    """A text reduced to the ASCII letters of the font: accents are dropped, other scripts become "?"."""
    dashes = text.translate({ord(sign): "-" for sign in "‐‑‒–—·"})
    letters = (letter for letter in unicodedata.normalize("NFKD", dashes) if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "?" for letter in letters)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
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
