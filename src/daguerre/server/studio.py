"""All parts of one running server, put together: what every route gets."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import randbelow
from typing import Any

from daguerre.adapters.presets import Preset, choose_preset
from daguerre.diffusion import parse_sampler_name, parse_spacing_name
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.context import resolve_request
from daguerre.pipelines.request import Request
from daguerre.server.adapters import AdapterLibrary
from daguerre.server.config import ServerConfig
from daguerre.server.errors import ApiError
from daguerre.server.events import EventLog
from daguerre.server.jobs.budget import Speeds, check_budget, work_of
from daguerre.server.jobs.job import Job
from daguerre.server.jobs.job_queue import JobQueue, Run
from daguerre.server.jobs.worker import Worker
from daguerre.server.messages import as_api_error
from daguerre.server.models import ModelList
from daguerre.server.storage.image_records import public_request
from daguerre.server.storage.inputs import read_request
from daguerre.server.storage.store import Store

MODEL_KEY, SPEED_KEY = "server.model", "server.speeds"
RANDOM = -1  # a seed that stands for any
PRESET_FIELDS = {"sampler", "spacing", "steps", "guidance_scale"}
UNOPENED = ("task", "adapters", "control_images")  # fields of a job whose files are opened when it runs


@dataclass
class Counters:
    """What happened since the start. refused: requests that met a full queue."""

    refused: int = 0
    started: float = field(default_factory=time.time)


class Studio:
    """The store, the queue and the workers of one server.

    Args:
        devices: of torch; each gets a worker.

    Raises:
        DaguerreError: the data folder cannot be used, or there is no such model.
    """

    def __init__(self, config: ServerConfig, devices: list[str]) -> None:
        self.config = config
        self.models = ModelList(config.model, config.data / "models")
        self.store = Store(config.data)
        self.adapters = AdapterLibrary(config.data)
        self.events = EventLog()
        self.counters = Counters()
        settings = self.store.settings()
        self.speeds = Speeds(settings.get(SPEED_KEY) or {})
        self.queue = JobQueue(self.store, self.events, config.limits.queued, self.seconds_of)
        chosen = settings.get(MODEL_KEY) if config.model is None else None
        self._model = chosen if chosen in self.models.choices() else self.models.default
        shared = self.queue, self.store, self.events, self.models, self.adapters, self.speeds, config
        self.workers = [Worker(device, *shared) for device in devices]

    def start(self) -> None:
        """Load the model and begin to work on the queue."""
        for worker in self.workers:
            worker.start(self._model)

    def drain(self) -> None:
        """Take no new jobs; what runs is finished."""
        self.queue.drain()

    def close(self, timeout: float | None = None) -> None:
        """Wait for the running jobs and close the store."""
        self.drain()
        for worker in self.workers:
            worker.join(timeout)
        self.store.save_settings({SPEED_KEY: self.speeds.known()})
        self.events.close()
        self.store.close()

    @property
    def is_ready(self) -> bool:
        """Whether a job would run now."""
        return not self.queue.draining and all(worker.ready.is_set() and worker.is_alive for worker in self.workers)

    @property
    def model(self) -> str:
        """The name of the current model, which jobs use that name none."""
        return self._model

    def select_model(self, name: str) -> str:
        """Make another model the current one; the next job loads it."""
        self._model = self.models.find(name).name
        self.store.save_settings({MODEL_KEY: self._model})
        return self._model

    @property
    def loaded(self) -> str | None:
        """The name of a model that is in memory."""
        return next((worker.loaded[0] for worker in self.workers if worker.loaded), None)

    def model_in_memory(self, name: str) -> LatentDiffusion | None:
        """A model by its name, if a worker has loaded it."""
        return next((model for worker in self.workers if (model := worker.model_of(name)) is not None), None)

    def seconds_of(self, job: Job) -> float | None:
        """How long a job will take; None if its model has not run yet."""
        try:
            request = Request.from_json({name: value for name, value in job.request.items() if name not in UNOPENED})
        except DaguerreError:
            return None
        facts = self.models.facts(job.model)
        return self.speeds.seconds(job.model, work_of(request, facts))

    def read_request(self, values: Mapping[str, Any], *, model: str | None = None, defaults: Mapping[str, Any] | None = None) -> Request:
        """A request from JSON of a caller, checked as far as that is possible before the run.

        A few-step file, the model itself or a LoRA, sets the fields of its preset that are not given.

        Args:
            model: a name of the list; None is the current model.
            defaults: fields that neither the caller nor a preset sets.

        Raises:
            ApiError: a value is wrong or beyond a limit; names it.
        """
        limits = self.config.limits
        if not isinstance(values.get("prompt", ""), str):
            raise ApiError(422, "prompt is one text.", code="invalid_request", param="prompt")
        if values.get("seed") == RANDOM:
            values = {**values, "seed": randbelow(2**32)}
        try:
            request = read_request(self.store, self.adapters, {**(defaults or {}), **values}, limits.upload_pixels)
            check_names(request)
            if not values.keys() >= PRESET_FIELDS and (chosen := self.preset_of(request, model)):
                request = replace(request, **chosen[0].fields_without(values))
        except DaguerreError as error:
            raise as_api_error(error) from error
        return request

    def preset_of(self, request: Request, model: str | None) -> tuple[Preset, Path] | None:
        """The preset of the few-step file among the model and the LoRAs of a request, and that file; None if there is none.

        Raises:
            DaguerreError: the files leave open which one it is, or one cannot be read.
        """
        loras = [Path(record.path) for record in request.adapters if record.kind == "lora" and record.scale and record.path]
        remedy = f"choose one of them, or give {', '.join(sorted(PRESET_FIELDS))} for an ordinary file"
        return choose_preset([self.models.find(model or self.model).path, *loras], remedy)

    def preset_problem(self, request: Request, model: str | None) -> str | None:
        """A warning about a guidance scale that the few-step file of a request does not support."""
        with suppress(DaguerreError):
            if (chosen := self.preset_of(request, model)) and (problem := chosen[0].guidance_problem(request.guidance_scale)):
                return f"{problem}."
        return None

    def submit(
        self,
        request: Request,
        *,
        model: str | None = None,
        edit: Callable[[Job], Job] = lambda job: job,
        waiting: bool = False,
    ) -> tuple[Job, Run]:
        """Queue a request.

        Args:
            model: a name of the list; None is the current model.
            edit: sets other fields of the job.
            waiting: a caller waits for it (see `JobQueue.submit`).

        Raises:
            ApiError: it is beyond a limit, the model cannot do it, or the queue is full.
        """
        name = self.models.find(model).name if model else self.model
        self.check(request, name)
        job = edit(Job(request=public_request(request), model=name))
        notes = [note for note in self.adapters.notes(request.prompts) if note not in job.warnings]
        notes += filter(None, [self.preset_problem(request, name)])
        job = replace(job, batch_size=max(1, min(job.batch_size, self.config.limits.batch)), warnings=(*job.warnings, *notes))
        return self.queue.submit(job, waiting=waiting)

    def check(self, request: Request, model: str) -> None:
        """Raise ApiError for a request beyond a limit, or one that the model, as far as it is known, does not do."""
        check_names(request)
        facts = self.models.facts(model)
        check_budget(request, facts, self.config.limits)
        if (loaded := self.model_in_memory(model)) is not None:
            try:
                resolve_request(loaded, replace(request, adapters=(), control_images=()))
            except DaguerreError as error:
                raise as_api_error(error) from error
        if facts is None:
            return
        if request.task.name not in facts.tasks:
            possible = ", ".join(facts.tasks)
            raise ApiError(
                422, f"The model {model} cannot do {request.task.name}; it does {possible}.", code="invalid_request", param="task"
            )
        for side in ("width", "height"):
            value = getattr(request, side)
            if value is not None and value % facts.factor:
                near = max(round(value / facts.factor), 1) * facts.factor
                message = f"The {side} {value} is not a multiple of {facts.factor}, as this model needs; {near} would be."
                raise ApiError(422, message, code="invalid_request", param=side)


def check_names(request: Request) -> None:
    """Raise DaguerreError for a sampler or a spacing that does not exist; names the nearest."""
    if request.sampler is not None:
        parse_sampler_name(request.sampler)
    if request.spacing is not None:
        parse_spacing_name(request.spacing)
