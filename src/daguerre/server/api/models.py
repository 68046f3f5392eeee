"""Models, samplers, the words of prompts, the plan of a request, and the page's settings."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from daguerre.adapters.presets import STEP_PRESETS
from daguerre.diffusion import SAMPLERS, SPACINGS
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import DEFAULT_SAMPLER, DEFAULT_SPACING
from daguerre.pipelines.images.preprocessors import PREPROCESSORS
from daguerre.pipelines.memory_plan import memory_plan_of
from daguerre.pipelines.metadata.write import SAMPLER_LABELS
from daguerre.pipelines.plan_graph import plan_graph, result_size
from daguerre.pipelines.request import Request
from daguerre.runtime.memory_estimate import free_memory
from daguerre.server.api.jobs import StrictBody
from daguerre.server.api.prompts import prompt_report
from daguerre.server.errors import ApiError, SafeJSONResponse
from daguerre.server.jobs.budget import work_of
from daguerre.server.messages import for_callers
from daguerre.server.models import family_of_model, vocabulary_of
from daguerre.server.studio import PRESET_FIELDS, Studio

SETTING_KEYS = ("form", "presets", "history", "language", "theme", "layout")
SUGGESTIONS = ("a red apple", "a cat face", "a blue trophy", "a rocket", "a parrot on a pink background", "a pizza", "a green crab")


class SelectBody(StrictBody):
    """A model by its name."""

    model: str = Field(max_length=300)


class PlanBody(StrictBody):
    """A request to plan."""

    request: dict[str, Any] = Field(default_factory=dict)
    model: str | None = Field(None, max_length=300)


class PromptBody(StrictBody):
    """Prompts to explain."""

    prompt: str = Field(max_length=32_000)
    negative_prompt: str = Field("", max_length=32_000)


def model_routes(studio: Studio) -> APIRouter:
    """The routes of `/api/models`, `/api/samplers`, `/api/plan`, `/api/prompt`, `/api/vocabulary` and `/api/settings`."""
    routes, models = APIRouter(tags=["models"]), studio.models

    @routes.get("/api/models")
    def listing() -> Response:
        choices = [models.to_json(choice, studio.loaded) for choice in models.choices().values()]
        return SafeJSONResponse({"models": choices, "current": studio.model})

    @routes.post("/api/models/select", status_code=202)
    def select(body: SelectBody) -> Response:
        return SafeJSONResponse({"current": studio.select_model(body.model)}, 202)

    @routes.get("/api/models/adapters")
    def adapters() -> Response:
        facts = models.facts(studio.model)
        family = family_of_model(models.find(studio.model)) or (facts and facts.family)
        return SafeJSONResponse({**studio.adapters.listing(family), "preprocessors": list(PREPROCESSORS)})

    @routes.get("/api/samplers")
    def samplers() -> Response:
        return SafeJSONResponse(
            {
                "samplers": sampler_list(),
                "spacings": spacing_list(),
                "default": defaults(studio),
                "presets": {preset.name: preset.fields for preset in STEP_PRESETS.values()},
            }
        )

    @routes.get("/api/plan")
    def plan(
        request: Annotated[str, Query(max_length=65_536)] = "{}", model: Annotated[str | None, Query(max_length=300)] = None
    ) -> Response:
        try:
            values = json.loads(request)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ApiError(422, "request is a JSON object.", code="invalid_request", param="request")
        return SafeJSONResponse(plan_report(studio, values, model))

    @routes.post("/api/plan")
    def plan_of_body(body: PlanBody) -> Response:
        return SafeJSONResponse(plan_report(studio, body.request, body.model))

    @routes.post("/api/prompt")
    def prompt(body: PromptBody) -> Response:
        model, vocabulary = studio.model_in_memory(studio.model), vocabulary_of(models.find(studio.model))
        return SafeJSONResponse(prompt_report(model, vocabulary, body.prompt, body.negative_prompt))

    @routes.get("/api/vocabulary")
    def vocabulary() -> Response:
        known = vocabulary_of(models.find(studio.model))
        suggestions = [text for text in SUGGESTIONS if known and not known.unknown([text])]
        return SafeJSONResponse({"model": studio.model, "words": known and sorted(known.words), "suggestions": suggestions})

    @routes.get("/api/settings")
    def settings() -> Response:
        known = studio.store.settings()
        return SafeJSONResponse({key: known.get(f"page.{key}") for key in SETTING_KEYS})

    @routes.post("/api/settings")
    def change_settings(body: dict[str, Any]) -> Response:
        for key, value in body.items():
            if key not in SETTING_KEYS:
                raise ApiError(
                    422, f"There is no setting {key[:60]!r}; there are {', '.join(SETTING_KEYS)}.", code="unknown_setting", param=key[:60]
                )
            if len(json.dumps(value)) > studio.config.limits.setting:
                raise ApiError(
                    413, f"The setting {key} is longer than {studio.config.limits.setting} bytes.", code="setting_too_large", param=key
                )
        studio.store.save_settings({f"page.{key}": value for key, value in body.items()})
        return settings()

    return routes


def sampler_list() -> list[dict[str, Any]]:
    """The samplers that generate images."""
    return [
        {
            "name": sampler.name,
            "label": SAMPLER_LABELS.get(sampler.name, sampler.name),
            "order": sampler.order,
            "evaluations": sampler.evaluations,
            "stochastic": sampler.stochastic,
            "min_steps": sampler.min_steps,
        }
        for sampler in SAMPLERS.values()
        if not sampler.inversion
    ]


def spacing_list() -> list[dict[str, str]]:
    """The spacings of noise levels."""
    return [{"name": name, "label": name.replace("_", " ").capitalize()} for name in SPACINGS]


def defaults(studio: Studio) -> dict[str, Any]:
    """What a request without settings gets."""
    model, facts = studio.model_in_memory(studio.model), studio.models.facts(studio.model)
    own = model.sampler_config if model else None
    return {
        "sampler": own.sampler.name if own else DEFAULT_SAMPLER,
        "spacing": own.spacing if own else DEFAULT_SPACING,
        "steps": Request.steps,
        "guidance_scale": facts.default_guidance if facts else None,
        "width": facts.sample_size if facts else None,
        "height": facts.sample_size if facts else None,
    }


def plan_report(studio: Studio, values: dict[str, Any], model_name: str | None) -> dict[str, Any]:
    """The plan of a request: its graph, memory and time. What the request gets wrong is in `error`."""
    name = studio.models.find(model_name).name if model_name else studio.model
    request = studio.read_request(values, model=name)
    model = studio.model_in_memory(name)
    error, size, memory = None, (request.width, request.height), None
    graph = plan_graph(request)
    try:
        studio.check(request, name)
        if model is not None:
            graph, size = plan_graph(request, model), result_size(request, model)
            memory = memory_plan_of(model, replace(request, num_images=1, adapters=(), control_images=()), size).peak or None
    except (DaguerreError, ApiError) as wrong:
        error = for_callers(wrong)
    seconds = studio.speeds.seconds(name, work_of(request, studio.models.facts(name)))
    return {
        **graph.to_json(),
        "steps": max(len(graph.sigmas) - 1, 0) or request.steps,
        "width": size[0],
        "height": size[1],
        "memory": memory,
        "memory_free": free_memory(),
        "seconds": None if seconds is None else round(seconds, 2),
        "preset": preset_json(studio, request, values, name),
        "warnings": [*size_warnings(size, model.sample_size if model else None), *filter(None, [studio.preset_problem(request, name)])],
        "error": error,
    }


def preset_json(studio: Studio, request: Request, values: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    """The preset of the few-step file of a request, its file, and the fields that it sets; None if it sets none."""
    if values.keys() >= PRESET_FIELDS or not (chosen := studio.preset_of(request, model)):
        return None
    preset, file = chosen
    return {"name": preset.name, "file": file.name, "fields": preset.fields_without(values)}


def size_warnings(size: tuple[int | None, int | None], own: int | None) -> list[str]:
    """What a size far from the model's own means."""
    if own is None or None in size:
        return []
    ratio = (size[0] or own) * (size[1] or own) / own**2
    if 0.25 <= ratio <= 4:
        return []
    return [
        f"{size[0]}×{size[1]} is far from the model's own {own}×{own}: it takes {ratio:.3g} times the work, and images may repeat or break."
    ]
