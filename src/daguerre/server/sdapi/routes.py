"""The web UI's interface: txt2img, img2img, progress, interrupt and skip, image metadata, plain upscaling."""

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from daguerre.pipelines.images.preprocess import resize
from daguerre.pipelines.metadata.containers import TEXT
from daguerre.pipelines.metadata.infotext import parse_infotext
from daguerre.pipelines.metadata.write import SAMPLER_LABELS
from daguerre.server.api.streams import check_done, wait_for
from daguerre.server.errors import ApiError, SafeJSONResponse
from daguerre.server.jobs.job import Job
from daguerre.server.jobs.job_queue import Run
from daguerre.server.jobs.results import encode_image
from daguerre.server.sdapi.lists import PLAIN_UPSCALERS
from daguerre.server.sdapi.options import current_options
from daguerre.server.sdapi.requests import ImageToImageBody, SdapiBody, SdapiCall, read_sdapi_call
from daguerre.server.storage.inputs import bytes_of_text, decode_upload
from daguerre.server.studio import Studio
from daguerre.version import VERSION

FACE_FIELDS = ("gfpgan_visibility", "codeformer_visibility")


class PngInfoBody(BaseModel):
    """An image whose metadata is read."""

    image: str


class InterrogateBody(BaseModel):
    """An image to be described, which is not possible here."""

    model_config = ConfigDict(extra="allow")


class ExtrasBody(BaseModel):
    """What both upscaling routes share."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    resize_mode: int = 0
    upscaling_resize: float = Field(2, gt=0, le=16)
    upscaling_resize_w: int = Field(512, ge=1, le=16_384)
    upscaling_resize_h: int = Field(512, ge=1, le=16_384)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"


class ExtraImageBody(ExtrasBody):
    """One image to enlarge."""

    image: str


class NamedImage(BaseModel):
    """An image with a name, which is not used."""

    data: str
    name: str = ""


class ExtraImagesBody(ExtrasBody):
    """Images to enlarge."""

    imageList: list[NamedImage] = Field(max_length=64)  # noqa: N815 (the web UI's name)


def sdapi_routes(studio: Studio) -> APIRouter:
    """The routes of `/sdapi/v1` that work on images."""
    routes, pixels = APIRouter(tags=["sdapi"]), studio.config.limits.upload_pixels

    @routes.post("/sdapi/v1/txt2img")
    async def txt2img(request: Request, body: SdapiBody) -> Response:
        return await _generate(studio, request, body)

    @routes.post("/sdapi/v1/img2img")
    async def img2img(request: Request, body: ImageToImageBody) -> Response:
        return await _generate(studio, request, body)

    @routes.get("/sdapi/v1/progress")
    def progress(skip_current_image: bool = False) -> Response:
        return SafeJSONResponse(progress_json(studio, with_image=not skip_current_image))

    @routes.post("/sdapi/v1/interrupt")
    def interrupt() -> Response:
        studio.queue.stop_running("interrupt")
        return SafeJSONResponse({})

    @routes.post("/sdapi/v1/skip")
    def skip() -> Response:
        studio.queue.stop_running("skip")
        return SafeJSONResponse(None)

    @routes.post("/sdapi/v1/png-info")
    def png_info(body: PngInfoBody) -> Response:
        upload = decode_upload(bytes_of_text(body.image, "image"), "image", pixels)
        text = upload.texts.get(TEXT, "")
        return SafeJSONResponse({"info": text, "items": dict(upload.texts), "parameters": parse_infotext(text) or {}})

    @routes.post("/sdapi/v1/interrogate")
    def interrogate(body: InterrogateBody) -> Response:
        raise ApiError(501, "Images cannot be described here.", code="not_implemented")

    @routes.post("/sdapi/v1/extra-single-image")
    def extra_single_image(body: ExtraImageBody) -> Response:
        image, note = _enlarged(body, body.image, pixels)
        return SafeJSONResponse({"html_info": note, "image": _base64(encode_image(image, "PNG"))})

    @routes.post("/sdapi/v1/extra-batch-images")
    def extra_batch_images(body: ExtraImagesBody) -> Response:
        results = [_enlarged(body, each.data, pixels) for each in body.imageList]
        note = results[0][1] if results else ""
        return SafeJSONResponse({"html_info": note, "images": [_base64(encode_image(image, "PNG")) for image, _ in results]})

    return routes


async def _generate(studio: Studio, request: Request, body: SdapiBody) -> Response:
    """Run a call. An interrupted one is answered with the images as they were."""
    call = await run_in_threadpool(lambda: read_sdapi_call(studio, body, current_options(studio)))

    def edit(job: Job) -> Job:
        return replace(job, client="sdapi", batch_size=call.batch_size, warnings=call.warnings)

    job, run = await run_in_threadpool(lambda: studio.submit(call.request, model=call.model, edit=edit, waiting=True))
    job = await wait_for(studio, request, job, run)
    if not (job.state == "cancelled" and (run.interrupted or job.images)):
        check_done(studio, job)
    return await run_in_threadpool(_answer, studio, body, call, job, run)


def _answer(studio: Studio, body: SdapiBody, call: SdapiCall, job: Job, run: Run) -> Response:
    records = [record for image_id in job.images if (record := studio.store.image(image_id))]
    files = [studio.store.path("images", record.id).read_bytes() for record in records]
    files += [encode_image(image, "PNG") for image in run.interrupted]
    request, facts = call.request, studio.models.facts(job.model)
    first = records[0].request if records else job.request
    seeds = [record.request["seed"] for record in records] or [request.seed]
    with_size = records[0] if records else None
    info = {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * max(len(seeds), 1),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * max(len(seeds), 1),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": request.variation.seed if request.variation else seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": request.variation.strength if request.variation else 0,
        "width": with_size.width if with_size else request.width,
        "height": with_size.height if with_size else request.height,
        "sampler_name": SAMPLER_LABELS.get(first.get("sampler") or "", first.get("sampler")),
        "cfg_scale": first.get("guidance_scale"),
        "steps": request.steps,
        "batch_size": call.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model,
        "sd_model_hash": facts.hash[:10] if facts and facts.hash else None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": getattr(request.task, "strength", None),
        "extra_generation_params": dict(call.parameters),
        "index_of_first_image": 0,
        "infotexts": [record.parameters for record in records],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "clip_skip": request.clip_skip or 1,
        "is_using_inpainting_conditioning": False,
        "interrupted": job.state == "cancelled",
        "warnings": list(job.warnings),
        "version": f"daguerre {VERSION}",
    }
    parameters = body.model_dump()
    if not getattr(body, "include_init_images", False):
        parameters = {name: None if name in ("init_images", "mask") else value for name, value in parameters.items()}
    images = [_base64(data) for data in files] if body.send_images is not False else []
    return SafeJSONResponse({"images": images, "parameters": parameters, "info": json.dumps(info)})


def progress_json(studio: Studio, *, with_image: bool) -> dict[str, Any]:
    """The progress of the job that runs; 0 and no jobs when none does."""
    job = studio.queue.running()
    run = studio.queue.run_of(job.id) if job else None
    active = studio.queue.count("running") + studio.queue.count("queued")
    preview = run.preview if run else None
    state = {
        "skipped": bool(run and run.stop == "skip"),
        "interrupted": bool(run and run.stop in ("cancel", "interrupt")),
        "stopping_generation": False,
        "job": job.id if job else "",
        "job_count": active,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.started)) if job and job.started else "0",
        "job_no": 0,
        "sampling_step": job.progress.step if job else 0,
        "sampling_steps": job.progress.steps if job else 0,
    }
    return {
        "progress": round(job.progress.fraction, 4) if job else 0.0,
        "eta_relative": round((run.seconds_left if run else None) or 0.0, 2),
        "state": state,
        "current_image": _base64(encode_image(preview, "PNG")) if preview and with_image else None,
        "textinfo": None,
        "current_task": job.id if job else None,
    }


def _enlarged(body: ExtrasBody, data: str, max_pixels: int) -> tuple[Image.Image, str]:
    """An image enlarged by a plain filter, and a note on what was ignored."""
    image = decode_upload(bytes_of_text(data, "image"), "image", max_pixels).image.pixels
    if body.upscaler_1 not in PLAIN_UPSCALERS:
        message = f"upscaler_1 is {body.upscaler_1[:60]!r}; there are {', '.join(PLAIN_UPSCALERS)}."
        raise ApiError(422, message, code="upscaler_not_found", param="upscaler_1")
    extra: Mapping[str, Any] = body.model_extra or {}
    ignored = [f"{name} is not supported" for name in FACE_FIELDS if extra.get(name)]
    ignored += ["upscaler_2 is not supported"] if body.upscaler_2 not in ("None", "", body.upscaler_1) else []
    if body.upscaler_1 == "None":
        return image, "; ".join(ignored)
    size = body.upscaling_resize_w, body.upscaling_resize_h
    if body.resize_mode == 0:
        size = round(image.width * body.upscaling_resize) or 1, round(image.height * body.upscaling_resize) or 1
    if size[0] * size[1] > max_pixels:
        raise ApiError(422, f"{size[0]}x{size[1]} pixels are more than {max_pixels // 10**6} million.", code="limit_exceeded")
    if body.upscaler_1 == "Nearest":
        return image.resize(size, Image.Resampling.NEAREST), "; ".join(ignored)
    return resize(image, size, "crop" if body.upscaling_crop and body.resize_mode else "stretch"), "; ".join(ignored)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
