"""The page of all generations: one HTML file with its images inside, which opens without a server and without a network."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from daguerre.data.images import to_image
from daguerre.evaluation.lineage.cells import FACE_SIZE, SHOWN_FACES, Column, mosaic, render_faces
from daguerre.evaluation.lineage.generations import ROWS, Row

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
table { border-collapse: collapse } th, td { padding: .5rem; vertical-align: top; max-width: 13rem; text-align: left }
tr + tr { border-top: 1px solid #ddd } img { width: 12rem; display: block } td { font-size: .85rem } code { overflow-wrap: anywhere }
.empty { color: #767676; font-style: italic }
"""
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>From the autoencoder to Stable Diffusion</title><style>{style}</style></head><body>
<h1>From the autoencoder to Stable Diffusion</h1>
<p>Every generation of model, trained on the same kind of images, side by side. Faces: {faces}. Images are not selected.</p>
<table>
"""
NOTES = """</table>
<p>Time: one image of a batch of four on this machine. Peak memory: what the process takes above PyTorch itself. Fréchet distance and
diversity use the features of the embedded CLIP: the distance of samples to true images of the same faces, and the mean of 1 − cosine
between samples of one condition with different seeds. Named correctly: how often that CLIP ranks the name of the condition first among
32.</p>
</body></html>
"""


def html_page(columns: Sequence[Column]) -> str:
    """The rows of the sheet, the numbers, what each generation added and why, and how it was trained."""
    rows = [_line("th", ["", "true images", *(f"{each.generation.title}<br><small>{each.generation.paper}</small>" for each in columns)])]
    for row in ROWS:
        original = _image([to_image(x) for x in render_faces(2 * FACE_SIZE)], "true images") if row == "reconstruct" else ""
        rows.append(_line("td", [f"<b>{row}</b>", original, *(_cell(each, row) for each in columns)]))
    numbers = {name: [html.escape(each.numbers()[name]) for each in columns] for name in columns[0].numbers()}
    rows += [_line("td", [f"<b>{name}</b>", "", *values]) for name, values in numbers.items()]
    rows.append(_line("td", ["<b>added</b>", "", *(html.escape(each.generation.added) for each in columns)]))
    rows.append(_line("td", ["<b>why</b>", "", *(html.escape(each.generation.why) for each in columns)]))
    rows.append(_line("td", ["<b>training</b>", "", *(_training(each) for each in columns)]))
    return HEAD.format(style=STYLE, faces=html.escape(", ".join(SHOWN_FACES))) + "\n".join(rows) + NOTES


def _cell(column: Column, row: Row) -> str:
    if row not in column.images:
        return f'<span class="empty">{html.escape(column.generation.missing[row])}</span>'
    return _image(column.images[row], f"{column.generation.title}, {row}") + html.escape(column.captions[row])


def _image(images: Sequence[Image.Image], alt: str) -> str:
    file = io.BytesIO()
    mosaic(images).save(file, "PNG")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _training(column: Column) -> str:
    lines = (f"<code>daguerre train {html.escape(each.format(runs='runs'))}</code>" for each in column.generation.commands)
    return f"<details><summary>commands</summary>{'<br>'.join(lines)}</details>"


def _line(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
