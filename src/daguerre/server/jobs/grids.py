"""XY grids: one labelled image over one or two settings, which keeps the request of every cell."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.comparison import Axis, Comparison, compare, compared_requests
from daguerre.pipelines.request import Request
from daguerre.server.errors import ApiError
from daguerre.server.jobs.job import Job
from daguerre.server.storage.image_records import first_cell, record_of, without_paths
from daguerre.server.storage.store import Store

MAX_GRID_CELLS = 64


def grid_axes(options: Mapping[str, Any]) -> tuple[Axis | None, Axis]:
    """(rows, columns) of a grid from its axes as JSON: y are the rows, x the columns."""
    x, y = options["x"], options.get("y")
    return Axis(y["field"], tuple(y["values"])) if y else None, Axis(x["field"], tuple(x["values"]))


def grid_cells(request: Request, options: Mapping[str, Any]) -> list[Request]:
    """The requests of all cells.

    Raises:
        ApiError: there are too many. DaguerreError: a value is wrong.
    """
    rows, columns = grid_axes(options)
    count = len(columns.values) * (len(rows.values) if rows else 1)
    if count > MAX_GRID_CELLS:
        raise ApiError(422, f"The grid has {count} cells, more than the limit of {MAX_GRID_CELLS}.", code="limit_exceeded", param="x")
    return [cell for row in compared_requests(request, rows, columns) for cell in row]


def make_grid(store: Store, job: Job, model: LatentDiffusion, request: Request, on_step: Callable[[int, int], None]) -> Job:
    """Generate and save a grid; returns the finished job.

    Args:
        on_step: called with the steps that are done, and all.
    """
    rows, columns = grid_axes(job.options)
    made = compare(model, request, rows, columns, on_step)
    images = [[replace(image, provenance=without_paths(image.provenance)) for image in row] for row in made.images]
    image_id = f"{job.id}-0"
    Comparison(images, rows, columns).save(store.path("images", image_id))
    table, _ = made.table()
    job = replace(job, images=(image_id,), state="done", finished=time.time())
    store.save_images(job, [record_of(image_id, job.id, time.time(), table.size, first_cell(images[0][0].provenance))])
    return job
