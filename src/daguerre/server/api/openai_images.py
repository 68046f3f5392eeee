"""OpenAI's Images interface: generations and edits, with streams of partial images, and the list of models."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from io import BytesIO
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import Response

from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.metadata.write import read_provenance, write_image_with_metadata
from daguerre.server.api.images import FORMAT_SUFFIX
from daguerre.server.api.openai_requests import GenerationBody, ImageCall, read_call
from daguerre.server.api.streams import check_done, event_stream, wait_for
from daguerre.server.errors import ApiError, SafeJSONResponse, to_json_text
from daguerre.server.events import PING
from daguerre.server.jobs.job import Job
from daguerre.server.jobs.job_queue import Run
from daguerre.server.storage.inputs import decode_upload
from daguerre.server.studio import Studio

BATCH_SIZE = 4  # images sampled together for one call
MAX_EDIT_IMAGES = 16
NO_USAGE = {"input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, "output_tokens": 0, "total_tokens": 0}


def openai_routes(studio: Studio) -> APIRouter:
    """The routes of `/v1`."""
    routes = APIRouter(tags=["openai"])

    @routes.get("/v1/models")
    def models() -> Response:
        return SafeJSONResponse({"object": "list", "data": [_model_json(studio, name) for name in studio.models.choices()]})

    @routes.get("/v1/models/{name:path}")
    def model(name: str) -> Response:
        return SafeJSONResponse(_model_json(studio, studio.models.find(name).name))

    @routes.post("/v1/images/generations")
    async def generations(request: Request, body: GenerationBody) -> Response:
        return await _answer(studio, request, await run_in_threadpool(read_call, studio, body))

    @routes.post("/v1/images/edits", openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": {"type": "object"}}}}})
    async def edits(request: Request) -> Response:
        values, files = await _read_form(request, studio.config.limits.body)
        try:
            body = GenerationBody.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(map(str, first["loc"]))
            raise ApiError(400, f"{param}: {first['msg']}.", code="invalid_value", param=param) from None
        images = files.pop("image", [])
        if len(images) != 1:
            message = "image is missing." if not images else f"{len(images)} images were sent; models here edit one image."
            raise ApiError(400, message, code="invalid_value", param="image")
        masks = files.pop("mask", [])
        if files:
            raise ApiError(400, f"{next(iter(files))[:60]} is not supported.", code="unsupported_value", param=next(iter(files))[:60])
        pixels = studio.config.limits.upload_pixels
        image = await run_in_threadpool(decode_upload, images[0], "image", pixels)
        mask: InputImage | None = None
        if masks:
            mask = (await run_in_threadpool(decode_upload, masks[0], "mask", pixels)).image
        return await _answer(studio, request, await run_in_threadpool(read_call, studio, body, image.image, mask))

    @routes.post("/v1/images/variations")
    async def variations() -> Response:
        raise ApiError(501, "Variations are not served; send the image to /v1/images/edits.", code="unsupported_endpoint")

    return routes


def _model_json(studio: Studio, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(studio.counters.started), "owned_by": "daguerre"}


async def _read_form(request: Request, max_bytes: int) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The texts and the files of a multipart form; `image[]` is `image`."""
    try:
        form = await request.form(max_files=MAX_EDIT_IMAGES + 2, max_fields=100, max_part_size=max_bytes)
    except (MultiPartException, ValueError, KeyError) as error:
        raise ApiError(400, f"The form cannot be read: {str(error)[:100]}.", code="invalid_form") from None
    values: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(key.removesuffix("[]"), []).append(await value.read())
        else:
            values[key] = value
    await form.close()
    return values, files


async def _answer(studio: Studio, request: Request, call: ImageCall) -> Response:
    """Run a call and answer it, as one object or as a stream."""

    def edit(job: Job) -> Job:
        return replace(
            job, client="openai", batch_size=BATCH_SIZE, partial=call.partial_images if call.stream else 0, warnings=call.warnings
        )

    since = studio.events.last_id
    job, run = await run_in_threadpool(lambda: studio.submit(call.request, model=call.model, edit=edit, waiting=True))
    if call.stream:
        return event_stream(_stream(studio, request, call, job, run, since))
    job = check_done(studio, await wait_for(studio, request, job, run))
    host = str(request.headers.get("host", ""))
    data = await run_in_threadpool(lambda: [_image_json(studio, call, image_id, request.url.scheme, host) for image_id in job.images])
    with Image.open(studio.store.path("images", job.images[0])) as image:
        size = f"{image.width}x{image.height}"
    warnings = {"warnings": list(job.warnings)} if job.warnings else {}
    answer = {
        "created": int(job.finished or time.time()),
        "data": data,
        "output_format": call.format,
        "size": size,
        **call.echo,
        **warnings,
    }
    return SafeJSONResponse(answer)


async def _stream(studio: Studio, request: Request, call: ImageCall, job: Job, run: Run, since: int) -> AsyncIterator[str]:
    """Partial images as they are predicted, then one event for each finished image. An error ends the stream.

    since: the last event before the job was queued.
    """
    waiting, sent = asyncio.ensure_future(wait_for(studio, request, job, run)), 0
    try:
        async with aclosing(studio.events.follow(since, job.id)) as events:
            async for event in events:
                while sent < len(run.partial):
                    image = run.partial[sent]
                    yield _event(
                        call, "partial_image", await run_in_threadpool(_encoded, image, call), image.size, partial_image_index=sent
                    )
                    sent += 1
                if event is None:
                    yield PING
                if run.done.done():
                    break
        done = check_done(studio, await waiting)
        for image_id in done.images:
            data, size = await run_in_threadpool(_file_bytes, studio, call, image_id)
            yield _event(call, "completed", data, size, usage=NO_USAGE)
    except ApiError as error:
        yield f"data: {to_json_text(error.to_json())}\n\n"
    finally:
        waiting.cancel()
        if not run.done.done():
            studio.queue.cancel(job.id)


def _event(call: ImageCall, name: str, data: bytes, size: tuple[int, int], **more: object) -> str:
    kind = f"{call.kind}.{name}"
    value = {
        "type": kind,
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": call.format,
        "quality": call.echo.get("quality", "auto"),
        "size": f"{size[0]}x{size[1]}",
        **more,
    }
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n"


def _encoded(image: Image.Image, call: ImageCall) -> bytes:
    """A partial image in the format of the call."""
    file = BytesIO()
    image.convert("RGB").save(file, call.format.upper())
    return file.getvalue()


def _file_bytes(studio: Studio, call: ImageCall, image_id: str) -> tuple[bytes, tuple[int, int]]:
    """A finished image in the format of the call, with its metadata, and its size."""
    path = studio.store.path("images", image_id)
    if call.format == "png":
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as image:
            return data, image.size
    image, provenance = read_provenance(path)
    file = BytesIO()
    if call.compression is None:
        write_image_with_metadata(file, image.convert("RGB"), FORMAT_SUFFIX[call.format], provenance)
    else:  # the caller chose a size of the file over exact pixels
        image.convert("RGB").save(file, call.format.upper(), quality=call.compression)
    return file.getvalue(), image.size


def _image_json(studio: Studio, call: ImageCall, image_id: str, scheme: str, host: str) -> dict[str, Any]:
    if call.as_url:
        kind = "" if call.format == "png" else f"?format={call.format}"
        return {"url": f"{scheme}://{host}/api/images/{image_id}{kind}"}
    return {"b64_json": base64.b64encode(_file_bytes(studio, call, image_id)[0]).decode()}
