"""Images over one or two settings of a request, as one labelled table whose file keeps the request of every image.

    compare(model, Request(prompt="a red apple"), rows=Axis("sampler", ("euler", "dpmpp_2m")), columns=Axis("steps", (5, 10, 20)))

Images that differ only in prompt or consecutive seeds are generated in one batch; each equals the image of its request alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import CellBox, image_table
from daguerre.pipelines.images.output import GeneratedImage, check_suffix
from daguerre.pipelines.metadata.write import OUTPUT_FORMATS, Provenance, write_image_with_texts
from daguerre.pipelines.request import Request, with_fields

if TYPE_CHECKING:
    from daguerre.models.latent_diffusion import LatentDiffusion

# Settings that can be compared, with their names in labels. `strength` belongs to the task, the others to the request.
COMPARED = {
    "prompt": "",
    "sampler": "",
    "spacing": "",
    "strength": "strength ",
    "guidance_scale": "guidance ",
    "steps": "steps ",
    "seed": "seed ",
    "negative_prompt": "without ",
    "guidance_rescale": "rescale ",
    "clip_skip": "CLIP skip ",
    "eta": "eta ",
}
MAX_CELLS = 400


@dataclass(frozen=True)
class Axis:
    """A setting and its values, one for each row or column.

    Raises:
        DaguerreError: the setting cannot be compared, or there are no values.
    """

    field: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.field not in COMPARED or not self.values:
            raise DaguerreError(f"Cannot compare {len(self.values)} values of {self.field!r}; give values of one of {', '.join(COMPARED)}.")

    @property
    def labels(self) -> list[str]:
        prefix = COMPARED[self.field]
        return [f"{prefix}{value:g}" if isinstance(value, float) else f"{prefix}{value}" for value in self.values]

    def apply(self, request: Request, value: Any) -> Request:
        """The request with this setting. Raises DaguerreError if its task has no such setting, or the value is out of range."""
        if self.field != "strength":
            return with_fields(request, {self.field: value})
        if self.field not in [each.name for each in fields(request.task)]:
            raise DaguerreError(f"{request.task.name} has no strength; compare strengths of img2img, with an input image.")
        return replace(request, task=replace(request.task, strength=value))


@dataclass(frozen=True)
class Comparison:
    """The images of a comparison, row by row. Notebooks show the table."""

    images: list[list[GeneratedImage]]
    rows: Axis | None
    columns: Axis

    def table(self) -> tuple[Image.Image, list[list[CellBox]]]:
        """The labelled table, and the box of each image in it."""
        pixels = [[each.image for each in row] for row in self.images]
        return image_table(pixels, rows=self.rows.labels if self.rows else (), columns=self.columns.labels)

    def save(self, path: str | Path) -> Path:
        """Write the table with the request of every image.

        Raises:
            DaguerreError: an unknown format, or the file cannot be written.
        """
        path = check_suffix(path, OUTPUT_FORMATS)
        table, boxes = self.table()
        cells = [
            [{**image.provenance.to_json(), "box": box} for image, box in zip(*pair, strict=True)]
            for pair in zip(self.images, boxes, strict=True)
        ]
        named = {"rows": self.rows, "columns": self.columns}
        axes = {name: axis and {"field": axis.field, "labels": axis.labels} for name, axis in named.items()}
        with atomic_write(path) as file:
            write_image_with_texts(file, table, path.suffix.lower(), None, {"comparison": axes, "cells": cells})
        return path

    def _repr_png_(self) -> bytes:
        """The table for notebooks."""
        file = BytesIO()
        self.table()[0].save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True)
class ComparedCell:
    """One image of a saved comparison: its provenance, and its pixels as the table shows them (see `image_table`)."""

    provenance: Provenance
    image: Image.Image


def compared_requests(request: Request, rows: Axis | None, columns: Axis) -> list[list[Request]]:
    """The request of each cell.

    Raises:
        DaguerreError: a value is out of range, both axes are the same setting, or there are too many cells.
    """
    if rows is not None and rows.field == columns.field:
        raise DaguerreError(f"Both axes are {rows.field}; compare two different settings.")
    count = len(columns.values) * (len(rows.values) if rows else 1)
    if count > MAX_CELLS:
        raise DaguerreError(f"The comparison has {count} images; at most {MAX_CELLS} are allowed.")
    heads = [request] if rows is None else [rows.apply(request, value) for value in rows.values]
    return [[columns.apply(head, value) for value in columns.values] for head in heads]


def check_comparison(model: "LatentDiffusion", request: Request, rows: Axis | None, columns: Axis) -> None:
    """Raise DaguerreError if a request of a comparison does not suit the model."""
    from daguerre.pipelines.capabilities import check_capability
    from daguerre.pipelines.context import GenerationContext

    for cell in [cell for row in compared_requests(request, rows, columns) for cell in row]:
        check_capability(model, cell.task)
        context, image = GenerationContext.of(model, cell), cell.task.input_images.get("image")
        context.sigmas(getattr(cell.task, "strength", 1.0))
        _ = context.image_size if image is None else context.size_on(image.pixels)


def compare(
    model: "LatentDiffusion",
    request: Request,
    rows: Axis | None,
    columns: Axis,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Comparison:
    """Generate the images of a comparison.

    Args:
        request: what all images share.
        rows, columns: the settings that differ; `rows` is None for a single row.
        on_step: called after each sampling step with the number of steps done, and of all steps.

    Raises:
        DaguerreError: at once, if a request does not suit the model.
    """
    from daguerre.pipelines.generation import stream

    check_comparison(model, request, rows, columns)
    cells = compared_requests(request, rows, columns)
    batches = [[batch] if (batch := as_batch(row, columns)) else row for row in cells]
    total, done = sum(batch.steps for row in batches for batch in row), 0
    images: list[list[GeneratedImage]] = []
    for row in batches:
        images.append([])
        for batch in row:
            for step in stream(model, batch):
                images[-1] += step.images or ()
                on_step(done + min(step.index + 1, batch.steps), total)
            done += batch.steps
    return Comparison(images, rows, columns)


def as_batch(row: Sequence[Request], columns: Axis) -> Request | None:
    """One request for all cells of a row, if they differ only in the prompt or in consecutive seeds; else None."""
    if columns.field == "prompt":
        return replace(row[0], prompt=columns.values)
    if columns.field == "seed" and list(columns.values) == list(range(row[0].seed, row[0].seed + len(row))):
        return replace(row[0], num_images=len(row))
    return None


def read_comparison(path: str | Path, table: Image.Image, data: dict[str, Any]) -> list[list[ComparedCell]]:
    """The cells of a saved comparison from its image and its JSON object. Raises DaguerreError if it was edited."""
    try:
        return [[ComparedCell(_provenance(cell), table.crop(tuple(cell["box"]))) for cell in row] for row in data["cells"]]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DaguerreError(f"The requests in '{path}' cannot be read; it was written by another version or edited.") from error


def _provenance(cell: dict[str, Any]) -> Provenance:
    return Provenance.from_json({name: value for name, value in cell.items() if name != "box"})
