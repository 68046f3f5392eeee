"""The sheet of all generations, and its numbers: measured ones from `assets/lineage.json`, the time for an image from this machine."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from daguerre.atomic_io import atomic_path
from daguerre.data.images import to_image
from daguerre.errors import DaguerreError
from daguerre.evaluation.lineage.cells import FACE_SIZE, Column, fill_cells, mosaic, render_faces
from daguerre.evaluation.lineage.generations import GENERATIONS, ROWS, Generation
from daguerre.evaluation.lineage.page import html_page
from daguerre.evaluation.report import check_out, markdown_table, write_report
from daguerre.pipelines.images.grid import image_table
from daguerre.progress import track
from daguerre.weights.catalog import ASSETS
from daguerre.weights.tensors.safetensors import read_json

SHEET, PAGE = "sheet.png", "index.html"
MEASURED = ASSETS / "lineage.json"  # written by `python -m benchmarks.lineage`


def show(out: Path, seed: int, runs: Path | None) -> list[Path]:
    """Write the sheet, the page and the report; returns the paths of the first two.

    Args:
        runs: folder of the trainings of `train_all`; None shows the shipped models.

    Raises:
        DaguerreError: `out` cannot be written or holds something else, or no model is complete.
    """
    check_out(out, "lineage", SHEET)
    known = read_json(MEASURED) if runs is None else {}
    available = [each for each in GENERATIONS if each.folder(runs).is_dir()]
    if not available:
        raise DaguerreError(f"There is no trained model in '{runs or ASSETS}'; run `daguerre lineage --retrain`.")
    columns = [fill_cells(each, str(each.folder(runs)), seed, known.get(each.name, {})) for each in track(available, "generating")]
    sheet = draw_sheet(columns)
    report = [{"name": column.generation.name, **column.numbers()} for column in columns]
    with atomic_path(out) as temporary:
        write_report(temporary, {"seed": seed, "generations": report}, summary(columns))
        sheet.save(temporary / SHEET)
        (temporary / PAGE).write_text(html_page(columns), encoding="utf-8")
    return [out / SHEET, out / PAGE]


def draw_sheet(columns: Sequence[Column]) -> Image.Image:
    """The originals and a column for each generation; an empty cell has its reason as caption."""
    originals = [to_image(x) for x in render_faces(2 * FACE_SIZE)]
    images = [[mosaic(originals if row == "reconstruct" else ()), *(mosaic(each.images.get(row, ())) for each in columns)] for row in ROWS]
    captions = [
        ["true images" if row == "reconstruct" else "", *(each.captions.get(row) or each.generation.missing[row] for each in columns)]
        for row in ROWS
    ]
    headings = [f"{each.generation.title}, {each.generation.paper}" for each in columns]
    return image_table(images, captions, rows=ROWS, columns=["", *headings]).image


def summary(columns: Sequence[Column]) -> str:
    """The numbers of all generations as a Markdown table."""
    rows = {name: [each.numbers()[name] for each in columns] for name in columns[0].numbers()}
    return markdown_table(["", *(each.generation.title for each in columns)], [[name, *values] for name, values in rows.items()])


def train_all(runs: Path) -> None:
    """Run the recorded trainings one after the other in `runs`; finished ones are skipped and an interrupted one is resumed.

    Raises:
        DaguerreError: a training failed; its own message is on stderr.
    """
    for generation in GENERATIONS:
        for arguments in commands(generation, runs):
            folder = Path(arguments[arguments.index("--out") + 1])
            if (folder / "model").is_dir():
                continue
            print(f"daguerre train {shlex.join(arguments)}", file=sys.stderr)
            if code := subprocess.run([sys.executable, "-m", "daguerre", "train", *arguments], check=False).returncode:
                raise DaguerreError(f"`daguerre train {arguments[0]}` ended with code {code}; `daguerre lineage --retrain` resumes it.")


def commands(generation: Generation, runs: Path) -> list[list[str]]:
    """The arguments of `daguerre train` for each training of a generation, with `--out`."""
    filled = [shlex.split(each.format(runs=shlex.quote(str(runs)))) for each in generation.commands]
    return [each if "--out" in each else [*each, "--out", str(runs / generation.name)] for each in filled]
