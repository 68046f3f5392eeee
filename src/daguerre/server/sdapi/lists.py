"""What the web UI's clients ask before they generate: models, samplers, schedulers and other lists. Every name in them works."""

import base64
from typing import Any

import torch
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from daguerre.diffusion import SPACINGS
from daguerre.pipelines.images.preprocess import flatten_input
from daguerre.pipelines.images.preprocessors import PREPROCESSORS
from daguerre.runtime.memory_estimate import free_memory
from daguerre.server.api.health import resident_bytes
from daguerre.server.errors import SafeJSONResponse
from daguerre.server.jobs.results import encode_image
from daguerre.server.models import ModelChoice
from daguerre.server.sdapi.controlnet import detected
from daguerre.server.sdapi.options import change_options, current_options, model_title
from daguerre.server.sdapi.requests import sampler_names
from daguerre.server.storage.inputs import bytes_of_text, decode_upload
from daguerre.server.studio import Studio
from daguerre.version import VERSION

EMPTY_LISTS = ("sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "script-info")
CONTROL_UNITS = 3  # that the web UI's ControlNet extension offers at first
PLAIN_UPSCALERS = ("None", "Lanczos", "Nearest")


class DetectBody(BaseModel):
    """Images of which condition maps are computed."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    controlnet_module: str = Field("none", max_length=60)
    controlnet_images: list[str] = Field(max_length=16)


def sdapi_list_routes(studio: Studio) -> APIRouter:
    """The routes of `/sdapi/v1` and `/controlnet` that generate nothing, and what bots of the web UI ask first."""
    routes = APIRouter(tags=["sdapi"])

    def get(name: str, value: Any) -> None:
        """A route that answers with a value, or with what a function returns."""

        def answer() -> Response:
            return SafeJSONResponse(value() if callable(value) else value)

        answer.__name__ = name.replace("-", "_").replace("/", "_")
        routes.add_api_route(f"/{name}", answer, methods=["GET"])

    def post(name: str, work: Any, answer: Any = None) -> None:
        """A route that does something and answers with a value; its body does not matter."""

        def run() -> Response:
            work()
            return SafeJSONResponse(answer)

        run.__name__ = name.replace("-", "_").replace("/", "_")
        routes.add_api_route(f"/sdapi/v1/{name}", run, methods=["POST"])

    for name in EMPTY_LISTS:
        get(f"sdapi/v1/{name}", [])
    get("sdapi/v1/sd-models", lambda: [_model_json(studio, choice) for choice in studio.models.choices().values()])
    get("sdapi/v1/samplers", [{"name": name, "aliases": [name.lower().replace(" ", "_")], "options": {}} for name in sampler_names()])
    get("sdapi/v1/schedulers", _schedulers())
    get("sdapi/v1/upscalers", [_upscaler(name) for name in PLAIN_UPSCALERS])
    get("sdapi/v1/latent-upscale-modes", [{"name": "Latent"}])
    get("sdapi/v1/loras", lambda: [_lora(name, path.name) for name, path in studio.adapters.files("lora").items()])
    get("sdapi/v1/embeddings", lambda: {"loaded": {name: _embedding() for name in studio.adapters.files("embedding")}, "skipped": {}})
    get("sdapi/v1/scripts", {"txt2img": [], "img2img": []})
    get("sdapi/v1/cmd-flags", lambda: {"api": True, "listen": False, "port": studio.config.port})
    get("sdapi/v1/memory", _memory)
    get("sdapi/v1/options", lambda: current_options(studio))
    get("controlnet/version", {"version": 2})
    get("controlnet/model_list", lambda: {"model_list": list(studio.adapters.files("controlnet"))})
    get("controlnet/module_list", {"module_list": ["none", *PREPROCESSORS], "module_detail": {}})
    get("controlnet/settings", {"control_net_unit_count": CONTROL_UNITS})
    get("config", {"version": f"daguerre {VERSION}", "mode": "blocks", "components": [], "dependencies": []})
    post("refresh-checkpoints", lambda: None)
    post("refresh-loras", lambda: None)
    post("refresh-vae", lambda: None)
    post("refresh-embeddings", lambda: None)
    post("unload-checkpoint", lambda: [worker.unload() for worker in studio.workers], {})
    post("reload-checkpoint", lambda: None, {})  # the next job loads it

    @routes.post("/sdapi/v1/options")
    def options(body: dict[str, Any]) -> Response:
        change_options(studio, body)
        return SafeJSONResponse(None)

    @routes.post("/login")
    def login() -> Response:  # the guard has checked the token by now, if there is one
        return SafeJSONResponse({"success": True})

    @routes.post("/controlnet/detect")
    def detect(body: DetectBody) -> Response:
        pixels = studio.config.limits.upload_pixels
        sources = [decode_upload(bytes_of_text(text, "controlnet_images"), "controlnet_images", pixels) for text in body.controlnet_images]
        maps = [detected(flatten_input(source.image), body.controlnet_module) for source in sources]
        return SafeJSONResponse({"images": [base64.b64encode(encode_image(image, "PNG")).decode() for image in maps], "info": "Success"})

    return routes


def _model_json(studio: Studio, choice: ModelChoice) -> dict[str, Any]:
    facts = studio.models.facts(choice.name)
    digest = facts.hash if facts else None
    return {
        "title": model_title(studio, choice),
        "model_name": choice.name,
        "hash": digest and digest[:10],
        "sha256": digest,
        "filename": choice.file_name,
        "config": None,
    }


def _lora(name: str, file: str) -> dict[str, Any]:
    return {"name": name, "alias": name, "path": file, "metadata": {}}


def _embedding() -> dict[str, Any]:
    return {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 1}


def _schedulers() -> list[dict[str, Any]]:
    rows = [("automatic", "Automatic"), *((name, name.replace("_", " ").capitalize()) for name in SPACINGS)]
    return [{"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False} for name, label in rows]


def _upscaler(name: str) -> dict[str, Any]:
    return {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}


def _memory() -> dict[str, Any]:
    """Memory in bytes, of this process and of the GPU."""
    used = resident_bytes()
    free = free_memory()
    cuda: dict[str, Any] = {"error": "unavailable"}
    if torch.cuda.is_available():
        available, total = torch.cuda.mem_get_info()
        cuda = {"system": {"free": available, "used": total - available, "total": total}}
    return {"ram": {"free": free, "used": used, "total": free + used}, "cuda": cuda}
