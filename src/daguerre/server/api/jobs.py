"""Jobs: submit, list, follow, cancel, move, edit, pause."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from daguerre.server.api.streams import event_stream, follow_all, follow_job
from daguerre.server.errors import SafeJSONResponse
from daguerre.server.jobs.budget import check_work
from daguerre.server.jobs.grids import grid_cells
from daguerre.server.jobs.job import Job
from daguerre.server.storage.image_records import public_request
from daguerre.server.studio import Studio

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=40)]
LastEventQuery = Annotated[str | None, Query(alias="last_event_id", max_length=40)]


class StrictBody(BaseModel):
    """A body without unknown fields."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class JobBody(StrictBody):
    """A new job. request: any part of a request; see docs/server.md."""

    request: dict[str, Any] = Field(default_factory=dict)
    model: str | None = Field(None, max_length=300)
    batch_size: int = Field(1, ge=1, le=64)


class GridAxis(StrictBody):
    """A setting and its values."""

    field: str = Field(max_length=40)
    values: list[str | int | float] = Field(min_length=1, max_length=64)


class GridBody(StrictBody):
    """A new grid: x are its columns, y its rows."""

    request: dict[str, Any] = Field(default_factory=dict)
    model: str | None = Field(None, max_length=300)
    x: GridAxis
    y: GridAxis | None = None


class EditBody(StrictBody):
    """What changes in a queued job."""

    request: dict[str, Any] = Field(default_factory=dict)
    model: str | None = Field(None, max_length=300)
    batch_size: int | None = Field(None, ge=1, le=64)


class MoveBody(StrictBody):
    """The queued job before which to move; null moves to the end."""

    before: str | None = Field(None, max_length=40)


class PauseBody(StrictBody):
    """Whether the queue starts no further job."""

    paused: bool


def job_routes(studio: Studio) -> APIRouter:
    """The routes of `/api/jobs` and `/api/events`."""
    routes, queue = APIRouter(tags=["jobs"]), studio.queue

    @routes.post("/api/jobs", status_code=202)
    def submit(body: JobBody) -> Response:
        job, _ = studio.submit(
            studio.read_request(body.request, model=body.model), model=body.model, edit=lambda job: replace(job, batch_size=body.batch_size)
        )
        return SafeJSONResponse(queue.to_json(job), 202)

    @routes.post("/api/grids", status_code=202)
    def submit_grid(body: GridBody) -> Response:
        request = studio.read_request({**body.request, "num_images": 1}, model=body.model)
        options = {"x": body.x.model_dump(), "y": body.y and body.y.model_dump()}
        cells = grid_cells(request, options)
        for cell in cells:
            studio.check(cell, body.model or studio.model)
        check_work(cells, studio.config.limits)
        job, _ = studio.submit(request, model=body.model, edit=lambda job: replace(job, kind="grid", options=options))
        return SafeJSONResponse(queue.to_json(job), 202)

    @routes.get("/api/jobs")
    def listing() -> Response:
        return SafeJSONResponse(queue.listing())

    @routes.get("/api/jobs/{job_id}")
    def one(job_id: JobId) -> Response:
        return SafeJSONResponse(queue.to_json(queue.get(job_id)))

    @routes.post("/api/jobs/{job_id}/cancel")
    def cancel(job_id: JobId) -> Response:
        return SafeJSONResponse({"cancelled": queue.cancel(job_id)})

    @routes.post("/api/jobs/{job_id}/move")
    def move(job_id: JobId, body: MoveBody) -> Response:
        return SafeJSONResponse(queue.to_json(queue.move(job_id, body.before)))

    @routes.post("/api/jobs/{job_id}/edit")
    def edit(job_id: JobId, body: EditBody) -> Response:
        def change(job: Job) -> Job:
            request = studio.read_request({**job.request, **body.request})
            model = studio.models.find(body.model).name if body.model else job.model
            studio.check(request, model)
            return replace(job, request=public_request(request), model=model, batch_size=body.batch_size or job.batch_size)

        return SafeJSONResponse(queue.to_json(queue.edit(job_id, change)))

    @routes.post("/api/queue/pause")
    def pause(body: PauseBody) -> Response:
        queue.pause(body.paused)
        return SafeJSONResponse({"paused": queue.paused})

    @routes.get("/api/events")
    async def all_events(last: LastEventId = None, query: LastEventQuery = None) -> Response:
        return event_stream(follow_all(studio, _event_id(last or query)))

    @routes.get("/api/jobs/{job_id}/events")
    async def job_events(request: Request, job_id: JobId, last: LastEventId = None, query: LastEventQuery = None) -> Response:
        queue.get(job_id)
        return event_stream(follow_job(studio, job_id, _event_id(last or query)))

    return routes


def _event_id(text: str | None) -> int | None:
    """The number of the last event that a reader has seen; None for anything that is not one."""
    return int(text) if text and text.isascii() and text.isdigit() else None
