"""Answers that last: server-sent events, and calls that wait for a job and end it when their caller leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import StreamingResponse

from daguerre.server.errors import ApiError, to_json_text
from daguerre.server.events import PING
from daguerre.server.jobs.job import Job
from daguerre.server.jobs.job_queue import Run
from daguerre.server.studio import Studio

NO_BUFFERING = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event_stream(texts: AsyncIterator[str]) -> StreamingResponse:
    """A response of server-sent events."""
    return StreamingResponse(texts, media_type="text/event-stream", headers=NO_BUFFERING)


async def follow_all(studio: Studio, last_id: int | None) -> AsyncIterator[str]:
    """All events; a reader without a known place in them begins with the queue as it is."""
    if last_id is None or not studio.events.remembers(last_id):
        last_id = studio.events.last_id
        yield _snapshot(last_id, "queue", '{"job":null,"value":' + _listing_text(studio) + "}")
    async for event in studio.events.follow(last_id):
        if event is None or event.kind != "partial":
            yield PING if event is None else event.encoded()


async def follow_job(studio: Studio, job_id: str, last_id: int | None) -> AsyncIterator[str]:
    """The events of one job up to its end; a reader without a known place in them begins with the job as it is."""
    if last_id is None or not studio.events.remembers(last_id):
        last_id = studio.events.last_id
        job = studio.queue.get(job_id)
        yield _snapshot(last_id, "job", to_json_text({"job": job_id, "value": studio.queue.to_json(job)}))
        if job.is_finished:
            return
    elif studio.queue.get(job_id).is_finished and not studio.events.since(last_id, job_id):
        return
    async for event in studio.events.follow(last_id, job_id):
        if event is None:
            yield PING
        elif event.kind != "partial":
            yield event.encoded()
            if event.kind == "job" and studio.queue.run_of(job_id) is None and not studio.events.since(event.id, job_id):
                return


def _snapshot(event_id: int, kind: str, data: str) -> str:
    return f"id: {event_id}\nevent: {kind}\ndata: {data}\n\n"


def _listing_text(studio: Studio) -> str:
    listing = studio.queue.listing()
    queued = [job["id"] for job in listing["jobs"] if job["state"] == "queued"]
    return to_json_text({"queued": queued, "paused": listing["paused"], "paused_reason": listing["paused_reason"]})


async def wait_for(studio: Studio, request: Request, job: Job, run: Run) -> Job:
    """Wait for a job to end. If the caller leaves, the job is cancelled.

    Raises:
        ApiError: the job failed or was cancelled.
    """
    ended = asyncio.wrap_future(run.done)
    left = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            studio.queue.cancel(job.id)
        return await ended
    finally:
        left.cancel()
        if not run.done.done():  # this call itself was cancelled
            studio.queue.cancel(job.id)


async def _disconnected(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return


def check_done(studio: Studio, job: Job) -> Job:
    """The job, if it is done. Raises ApiError if it failed or was cancelled."""
    if job.state == "failed" and job.error:
        code = job.error["code"]
        status = {"internal_error": 500, "out_of_memory": 507}.get(code, 422)
        raise ApiError(status, job.error["message"], code=code)
    if job.state == "cancelled":
        if studio.queue.draining:
            raise ApiError(503, "The server is stopping. Try again when it is back.", code="stopping", retry_after=5)
        raise ApiError(409, "The job was cancelled.", code="cancelled")
    return job
