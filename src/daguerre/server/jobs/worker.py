"""A worker: the thread that takes one job after the other and runs it on one device."""

import logging
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from daguerre.adapters.load import with_recorded_adapters
from daguerre.adapters.record import AdapterRecord
from daguerre.data.images import to_image
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.decode import LatentDecoder
from daguerre.pipelines.generation import Step, stream
from daguerre.pipelines.request import Request
from daguerre.server.adapters import AdapterLibrary
from daguerre.server.config import ServerConfig
from daguerre.server.errors import ApiError
from daguerre.server.events import EventLog
from daguerre.server.jobs.attention import record_words
from daguerre.server.jobs.budget import Speeds, work_of
from daguerre.server.jobs.grids import make_grid
from daguerre.server.jobs.job import Job, Progress, batches
from daguerre.server.jobs.job_queue import JobQueue, Run
from daguerre.server.jobs.results import SampledBatch, preview_uri, save_results
from daguerre.server.messages import for_callers, is_storage_trouble
from daguerre.server.model_loading import open_for_server
from daguerre.server.models import ModelList
from daguerre.server.storage.inputs import read_request
from daguerre.server.storage.store import Store

log = logging.getLogger(__name__)
PRUNE_EVERY = 50  # jobs
PREVIEW_SHARE = 0.08  # of the time of a run: previews of slow models come at each step, those of quick ones less often


@dataclass(frozen=True)
class BatchPosition:
    """The number of a batch among `count`, and the number of its first image."""

    number: int
    count: int
    first: int


class Stopped(Exception):
    """The running job has been cancelled."""


class Worker:
    """Runs jobs on one device and keeps one model loaded.

    Args:
        device: of torch, such as "cpu" or "cuda:0".
    """

    def __init__(
        self,
        device: str,
        queue: JobQueue,
        store: Store,
        events: EventLog,
        models: ModelList,
        adapters: AdapterLibrary,
        speeds: Speeds,
        config: ServerConfig,
    ) -> None:
        self.device, self._queue, self._store, self._events = device, queue, store, events
        self._models, self._adapters, self._speeds = models, adapters, speeds
        self._limits, self._engine = config.limits, config.engine
        self._adapted: tuple[tuple[AdapterRecord, ...], LatentDiffusion] | None = None  # the latest bundle with adapters
        self.loaded: tuple[str, LatentDiffusion] | None = None
        self._decoder: LatentDecoder | None = None  # of previews; it keeps what it fits at the first one
        self.ready = threading.Event()
        self._jobs_done = 0
        self._thread = threading.Thread(target=self._loop, name=f"worker {device}", daemon=True)

    def start(self, model: str) -> None:
        """Begin to load a model, then to take jobs."""
        self._first_model = model
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the running job to end, after the queue was drained."""
        self._thread.join(timeout)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def model_of(self, name: str) -> LatentDiffusion | None:
        """The model if it is loaded."""
        loaded = self.loaded
        return loaded[1] if loaded and loaded[0] == name else None

    def unload(self) -> None:
        """Release the model; the next job loads it again."""
        self.loaded = self._decoder = self._adapted = None

    def _loop(self) -> None:
        try:
            self._load(self._first_model)
        except Exception:  # each job of the model reports it
            log.exception("The model %s cannot be loaded", self._first_model)
        self.ready.set()
        while (job := self._queue.take()) is not None:
            self._work(job)
            self._jobs_done += 1
            if self._jobs_done % PRUNE_EVERY == 0:
                with suppress(ApiError, OSError):
                    self._store.prune()

    def _work(self, job: Job) -> None:
        """Run a job to its end, whatever that is."""
        run = self._queue.run_of(job.id) or Run()
        try:
            try:
                self._run_kind(job, run)
            except Stopped:
                self._queue.finish(replace(self._queue.get(job.id), state="cancelled"))
            except (DaguerreError, ApiError) as error:
                if is_storage_trouble(error):
                    raise
                self._fail(job, for_callers(error), getattr(error, "code", "invalid_request"))
            except (torch.OutOfMemoryError, MemoryError):
                self.unload()
                self._fail(job, "The memory was not enough. Ask for fewer or smaller images.", "out_of_memory")
            except Exception as error:
                log.exception("The job %s failed", job.id)
                self._fail(job, f"Unexpected {type(error).__name__}; the server's log has the details.", "internal_error")
        except (DaguerreError, ApiError) as error:  # the disk is full or the database is locked: the job is kept
            log.error("The queue is paused: %s", error)
            self._queue.put_back(self._queue.get(job.id))
            self._queue.pause(True, for_callers(error))

    def _fail(self, job: Job, message: str, code: str) -> None:
        self._queue.finish(replace(self._queue.get(job.id), state="failed", error={"message": message, "code": code}))

    def _run_kind(self, job: Job, run: Run) -> None:
        name, model = self._load(job.model)
        job = replace(job, model=name)
        request = read_request(self._store, self._adapters, job.request, self._limits.upload_pixels)
        model, request = self._with_adapters(model, request.adapters), replace(request, adapters=())
        if job.kind == "attention":
            self._attention(job, run, model, request)
        elif job.kind == "grid":
            self._grid(job, run, model, request)
        else:
            self._generate(job, run, model, request)

    def _load(self, name: str) -> tuple[str, LatentDiffusion]:
        """The model of a name, loaded if another one is."""
        choice = self._models.find(name)
        if self.loaded is None or self.loaded[0] != choice.name:
            self.unload()
            model = open_for_server(choice.source, self.device, self._engine)
            self._models.remember(choice.name, model)
            self._decoder = LatentDecoder(model)
            self.loaded = choice.name, model
        return self.loaded

    def _with_adapters(self, model: LatentDiffusion, records: tuple[AdapterRecord, ...]) -> LatentDiffusion:
        """The model with adapters attached; the latest ones stay attached for jobs with the same."""
        if not records:
            return model
        if self._adapted is None or self._adapted[0] != records:
            self._adapted = records, with_recorded_adapters(model, records)
        return self._adapted[1]

    def _generate(self, job: Job, run: Run, model: LatentDiffusion, request: Request) -> None:
        """Generate and save the images batch by batch; after a restart those that are saved already are left out."""
        parts, first, started = batches(request, job.batch_size), 0, time.monotonic()
        sampled = 0
        for number, part in enumerate(parts):
            if f"{job.id}-{first}" not in job.images:
                if run.stop in ("cancel", "interrupt"):
                    raise Stopped
                start = Progress(number * request.steps, len(parts) * request.steps, first, stage="sampling")
                self._queue.update(replace(job, progress=start))
                batch = self._sample(job, run, model, part, BatchPosition(number, len(parts), first))
                if batch is not None:
                    job = self._save(job, first, batch)
                    sampled += 1
            first += len(part.items)
        if sampled == len(parts):
            self._speeds.observe(job.model, work_of(request, self._models.facts(job.model)), time.monotonic() - started)
        self._queue.finish(replace(job, state="done"))

    def _sample(self, job: Job, run: Run, model: LatentDiffusion, part: Request, position: BatchPosition) -> SampledBatch | None:
        """Sample one batch; None if it was skipped. Raises Stopped if the job ends."""
        latents: list[Tensor] = []
        sigmas: list[float] = []
        images, started = None, time.monotonic()
        with closing(stream(model, part)) as steps:  # type: ignore[arg-type]
            for step in steps:
                if run.stop == "interrupt" and step.images is None:
                    run.interrupted += [step.decode(i) for i in range(len(part.items))]
                    raise Stopped
                if run.stop == "cancel":
                    raise Stopped
                if run.stop == "skip":
                    run.stop = None
                    return None
                latents.append(step.x0.to("cpu", torch.float16))
                sigmas.append(step.sigma)
                self._report(job, run, step, position, time.monotonic() - started)
                if step.images is None and _is_partial(step.index, step.total, job.partial):
                    run.partial.append(step.decode())
                    self._events.publish("partial", job.id, index=len(run.partial) - 1)
                images = step.images or images
        assert images is not None
        return SampledBatch(images, latents, sigmas)

    def _save(self, job: Job, first: int, batch: SampledBatch) -> Job:
        """Save the images of a batch and announce them."""
        self._queue.update(replace(job, progress=replace(self._queue.get(job.id).progress, stage="saving")))
        known = len(job.images)
        job = save_results(self._store, job, first, batch)
        self._queue.update(job)
        for image_id in job.images[known:]:
            if record := self._store.image(image_id):
                self._events.publish("image", job.id, value=record.to_json(steps_kept=record.step_count))
        return job

    def _report(self, job: Job, run: Run, step: Step, position: BatchPosition, elapsed: float) -> None:
        """Note a step's progress and publish it, with a preview where previews have not taken their share of the time."""
        assert self._decoder is not None
        done, total = position.number * step.total + step.index + 1, position.count * step.total
        run.seconds_left = elapsed / (step.index + 1) * (total - done)
        preview, now = None, time.monotonic()
        if now >= run.next_preview:
            run.preview = to_image(self._decoder.preview(step.x0[:1])[0])
            preview = preview_uri(run.preview)
            run.next_preview = now + (time.monotonic() - now) / PREVIEW_SHARE
        progress = Progress(done, total, position.first, step.sigma, "sampling")
        self._queue.update(replace(job, progress=progress))
        self._events.publish(
            "step",
            job.id,
            **{name: value for name, value in progress.to_json().items() if name != "stage"},
            batch=position.number,
            seconds_left=round(run.seconds_left, 2),
            preview=preview,
            node="sampler" if step.index < job.request["steps"] else job.request["task"]["name"],
        )

    def _attention(self, job: Job, run: Run, model: LatentDiffusion, request: Request) -> None:
        """Generate an image again and keep where each of its words acted."""

        def on_step(step: Step) -> None:
            if run.stop is not None:
                raise Stopped
            self._report(job, run, step, BatchPosition(0, 1, 0), time.monotonic() - started)

        assert job.image is not None
        started = time.monotonic()
        record_words(self._store, job.image, model, request, on_step)
        self._queue.finish(replace(job, state="done"))

    def _grid(self, job: Job, run: Run, model: LatentDiffusion, request: Request) -> None:
        """Generate a grid of cells as one image."""
        started = time.monotonic()

        def on_step(done: int, total: int) -> None:
            if run.stop is not None:
                raise Stopped
            run.seconds_left = (time.monotonic() - started) / max(done, 1) * (total - done)
            progress = Progress(done, total, stage="sampling")
            self._queue.update(replace(job, progress=progress))
            values = {name: value for name, value in progress.to_json().items() if name != "stage"}
            self._events.publish("step", job.id, **values, batch=0, seconds_left=round(run.seconds_left, 2), preview=None, node="sampler")

        made = make_grid(self._store, job, model, request, on_step)
        if record := self._store.image(made.images[0]):
            self._events.publish("image", job.id, value=record.to_json())
        self._queue.finish(made, stored=True)


def _is_partial(index: int, total: int, count: int) -> bool:
    """Whether one of `count` partial images, evenly spread over the steps, is due after the step `index`."""
    return any(round(total * number / (count + 1)) == index + 1 for number in range(1, count + 1))
