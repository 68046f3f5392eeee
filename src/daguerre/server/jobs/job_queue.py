"""The queue: jobs in order, one taken by each free worker. It survives a restart, and can be paused, reordered and edited."""

import gc
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from daguerre.runtime.allocator import trim_heap
from daguerre.server.errors import ApiError, not_found
from daguerre.server.events import EventLog
from daguerre.server.jobs.job import FINISHED, Job, JobState, Progress
from daguerre.server.storage.store import Store

LISTED_JOBS = 50  # finished jobs that a listing shows
MAX_RETRY_SECONDS = 120
JOB_SECONDS = 10.0  # assumed for a job of a model that has not run yet
PAUSED_KEY = "queue.paused"
TRIM_AFTER = 2.0  # seconds without a job before freed memory goes back to the system


@dataclass
class Run:
    """What a job that is not finished has in memory only.

    done: its final state. stop: "cancel" discards the image at work, "interrupt" keeps it as it is, "skip" goes on with the next batch.
    preview: an image predicted in one of the latest steps, small. next_preview: when the next one is due, in monotonic seconds.
    partial: images decoded in full on the way, as the job asks.
    interrupted: images as they were when the run was interrupted.
    """

    done: Future[Job] = field(default_factory=Future)
    stop: str | None = None
    waiting: bool = False
    preview: Image.Image | None = None
    next_preview: float = 0.0
    partial: list[Image.Image] = field(default_factory=list)
    interrupted: list[Image.Image] = field(default_factory=list)
    seconds_left: float | None = None


class JobQueue:
    """Jobs that are not finished. All methods may be called from any thread.

    Args:
        estimate: the seconds that a job takes, None if unknown.
    """

    def __init__(self, store: Store, events: EventLog, limit: int, estimate: Callable[[Job], float | None]) -> None:
        self._store, self._events, self.limit, self._estimate = store, events, limit, estimate
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._runs: dict[str, Run] = {}
        self.paused = bool(store.settings().get(PAUSED_KEY))
        self.paused_reason: str | None = None
        self.draining = False
        self.finished: Counter[str] = Counter()  # since the start
        for rank, job in enumerate(store.pending_jobs()):
            self._jobs[job.id] = replace(job, state="queued", rank=float(rank))
            self._runs[job.id] = Run()

    # what callers ask

    @property
    def is_full(self) -> bool:
        return self.count("queued") >= self.limit

    def count(self, state: JobState) -> int:
        """How many jobs are queued or running."""
        with self._changed:
            return sum(job.state == state for job in self._jobs.values())

    def full_error(self) -> ApiError:
        """The error for a job too many, with the time until a place is free."""
        with self._changed:
            running = [self._runs[job.id].seconds_left for job in self._jobs.values() if job.state == "running"]
            seconds = min((left for left in running if left is not None), default=None)
            if seconds is None:
                seconds = next((left for job in self._queued() if (left := self._estimate(job)) is not None), JOB_SECONDS)
        wait = min(max(math.ceil(seconds), 1), MAX_RETRY_SECONDS)
        return ApiError(
            429, f"{self.limit} jobs are queued, which is the limit. Try again in {wait} s.", code="queue_full", retry_after=wait
        )

    def submit(self, job: Job, *, waiting: bool = False) -> tuple[Job, Run]:
        """Append a job. waiting: a caller waits for it, so it ends when the server stops.

        Raises:
            ApiError: the queue is full, the server stops, or the disk is full.
        """
        with self._changed:
            if self.draining:
                raise ApiError(503, "The server is stopping. Try again when it is back.", code="stopping", retry_after=5)
            if self.is_full:
                raise self.full_error()
            job = replace(job, rank=max((other.rank for other in self._jobs.values()), default=0.0) + 1)
            self._store.save_job(job)
            self._jobs[job.id], self._runs[job.id] = job, Run(waiting=waiting)
            self._changed.notify()
            run = self._runs[job.id]
        self._publish_job(job)
        return job, run

    def get(self, job_id: str) -> Job:
        """A job by its id, finished or not. Raises ApiError if there is none."""
        with self._changed:
            job = self._jobs.get(job_id)
        job = job or self._store.job(job_id)
        if job is None:
            raise not_found("job", job_id)
        return job

    def run_of(self, job_id: str) -> Run | None:
        """What an unfinished job has in memory."""
        with self._changed:
            return self._runs.get(job_id)

    def running(self) -> Job | None:
        """The job that runs, or one of them."""
        with self._changed:
            return next((job for job in self._jobs.values() if job.state == "running"), None)

    def to_json(self, job: Job) -> dict[str, Any]:
        """A job as callers see it, with its position and the remaining time."""
        with self._changed:
            order = [each.id for each in self._queued()]
            run = self._runs.get(job.id)
            left = run.seconds_left if run and job.state == "running" else self._estimate(job) if not job.is_finished else None
        position = order.index(job.id) if job.id in order else 0 if job.state == "running" else None
        return {**job.to_json(), "position": position, "seconds_left": None if left is None else round(left, 2)}

    def listing(self) -> dict[str, Any]:
        """The running jobs, the queued ones in order, and the latest finished ones."""
        with self._changed:
            active = [job for job in self._jobs.values() if job.state == "running"] + self._queued()
        jobs = [self.to_json(job) for job in [*active, *self._store.finished_jobs(LISTED_JOBS)]]
        return {"jobs": jobs, "paused": self.paused, "paused_reason": self.paused_reason, "limit": self.limit}

    def cancel(self, job_id: str) -> bool:
        """End a job within one step of its run; whether it is cancelled, now or before."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return self.get(job_id).state == "cancelled"
            if job.state == "running":
                self._runs[job_id].stop = "cancel"
            else:
                self.finish(replace(job, state="cancelled"))
        return True

    def stop_running(self, how: str) -> None:
        """Stop what runs now: "interrupt" or "skip" (see `Run`). Queued jobs are unaffected."""
        with self._changed:
            for job in self._jobs.values():
                if job.state == "running":
                    self._runs[job.id].stop = how

    def move(self, job_id: str, before: str | None) -> Job:
        """Move a queued job before another one, or to the end. Raises ApiError if one of them is not queued."""
        with self._changed:
            job = self._queued_job(job_id)
            others = [each for each in self._queued() if each.id != job_id]
            if before is None or before == job_id:
                index = len(others)
            else:
                self._queued_job(before)
                index = [each.id for each in others].index(before)
            others.insert(index, job)
            for rank, each in enumerate(others):
                if each.rank != rank:
                    self._jobs[each.id] = replace(each, rank=float(rank))
                    self._store.save_job(self._jobs[each.id])
            moved = self._jobs[job_id]
        self._publish_queue()
        return moved

    def edit(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Replace a queued job's request. Raises ApiError if it is not queued any more."""
        with self._changed:
            job = change(self._queued_job(job_id))
            self._store.save_job(job)
            self._jobs[job_id] = job
        self._publish_job(job)
        return job

    def pause(self, paused: bool, reason: str | None = None) -> None:
        """Start no further job, or go on. What runs is finished."""
        with self._changed:
            self.paused, self.paused_reason = paused, reason if paused else None
            self._changed.notify_all()
        if reason is None:
            self._store.save_settings({PAUSED_KEY: True if paused else None})
        self._publish_queue()

    # what workers ask

    def take(self) -> Job | None:
        """The next job, once there is one; None when the server stops. An empty queue returns unused memory to the system."""
        trim_after: float | None = TRIM_AFTER
        with self._changed:
            while not self.draining:
                if not self.paused and (queued := self._queued()):
                    job = replace(queued[0], state="running", started=time.time(), progress=Progress(stage="loading"))
                    self._jobs[job.id] = job
                    break
                if not self._changed.wait(trim_after):
                    gc.collect()  # reference cycles hold the tensors of finished runs
                    trim_heap()
                    trim_after = None
            else:
                return None
        self._publish_job(job)
        self._publish_queue()
        return job

    def update(self, job: Job) -> None:
        """Note the progress of a running job."""
        with self._changed:
            if job.id in self._jobs:
                self._jobs[job.id] = job

    def put_back(self, job: Job) -> None:
        """Queue a running job again, before all others."""
        with self._changed:
            first = min((each.rank for each in self._jobs.values()), default=0.0)
            job = replace(job, state="queued", rank=first - 1, started=None, progress=Progress())
            self._jobs[job.id] = job
        self._publish_job(job)

    def finish(self, job: Job, *, stored: bool = False) -> None:
        """End a job, whose state says how. stored: the store has it already."""
        assert job.state in FINISHED
        job = replace(job, finished=job.finished or time.time())
        with self._changed:
            if job.id not in self._jobs:
                return
            if not stored:
                self._store.save_job(job)
            del self._jobs[job.id]
            run = self._runs.pop(job.id)
            self.finished[job.state] += 1
        run.done.set_result(job)
        self._publish_job(job)
        self._publish_queue()

    def drain(self) -> None:
        """Stop: no new jobs, the running one is finished, the queued ones stay for the next start unless a caller waits for them."""
        with self._changed:
            self.draining = True
            self._changed.notify_all()
            for job in self._queued():
                if self._runs[job.id].waiting:
                    self.finish(replace(job, state="cancelled"))

    def _queued(self) -> list[Job]:
        return sorted((job for job in self._jobs.values() if job.state == "queued"), key=lambda job: (job.rank, job.created))

    def _queued_job(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.state != "queued":
            state = self.get(job_id).state
            raise ApiError(409, f"The job {job_id} is {state}; only a queued job can be moved or edited.", code="not_queued")
        return job

    def _publish_job(self, job: Job) -> None:
        self._events.publish("job", job.id, value=self.to_json(job))

    def _publish_queue(self) -> None:
        with self._changed:
            order = [job.id for job in self._queued()]
        self._events.publish("queue", None, value={"queued": order, "paused": self.paused, "paused_reason": self.paused_reason})
