"""A job: a request with its place in the queue and what came of it, as a value that SQLite and JSON hold."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from secrets import token_hex
from typing import Any, Literal

from daguerre.pipelines.request import Request

JobKind = Literal["generate", "attention", "grid"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
JobClient = Literal["page", "openai", "sdapi"]
FINISHED: tuple[JobState, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Progress:
    """How far a running job is.

    step: steps that are done, of all batches. steps: of all batches. image: the first image of the batch at work.
    """

    step: int = 0
    steps: int = 0
    image: int = 0
    sigma: float | None = None
    stage: Literal["loading", "sampling", "saving"] | None = None

    @property
    def fraction(self) -> float:
        """The share of the steps that are done, 0 to 1."""
        return self.step / self.steps if self.steps else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fraction": round(self.fraction, 4)}


@dataclass(frozen=True)
class Job:
    """One entry of the queue.

    Attributes:
        request: `Request.to_json` with input images by id: {"id", "sha256"}.
        rank: the queue runs in ascending order of it.
        model: the model's name in the list of models.
        batch_size: images that are sampled together; a job runs in several batches if it has more.
        partial: how many times the image predicted so far is decoded in full, for callers who show it.
        images: ids of the images saved so far.
        image: of an attention job, the image whose words are looked up.
        options: what only one kind of job has, such as the axes of a grid.
        error: a message and a code, of a failed job.
        warnings: what the caller asked for and did not get.
    """

    request: Mapping[str, Any]
    model: str
    id: str = field(default_factory=lambda: token_hex(8))
    kind: JobKind = "generate"
    state: JobState = "queued"
    rank: float = 0.0
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    client: JobClient = "page"
    batch_size: int = 1
    partial: int = 0
    images: tuple[str, ...] = ()
    image: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()
    progress: Progress = Progress()

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED

    def to_json(self) -> dict[str, Any]:
        """What callers see; `position` and `seconds_left` depend on the queue, which adds them."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("rank", "partial", "options")}
        return {**values, "images": list(self.images), "warnings": list(self.warnings), "progress": self.progress.to_json()}

    def stored(self) -> dict[str, Any]:
        """What is kept on the disk: everything but the progress."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "progress"}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> "Job":
        """Read what `stored` wrote, from JSON."""
        return cls(**{**values, "images": tuple(values["images"]), "warnings": tuple(values["warnings"])})


def batches(request: Request, batch_size: int) -> list[Request]:
    """The request in parts of so many images; image i of the parts together equals image i of the request."""
    singles = request.split()
    count = len(singles)
    return [replace(singles[i], num_images=min(batch_size, count - i)) for i in range(0, count, batch_size)]
