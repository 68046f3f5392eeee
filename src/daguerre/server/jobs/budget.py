"""How much work a request is, for the limit on it and for the remaining time."""

import threading
from collections.abc import Mapping, Sequence

from daguerre.diffusion import computed_steps
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Hires, ImageToImage, Inpaint, Outpaint
from daguerre.server.config import Limits
from daguerre.server.errors import ApiError
from daguerre.server.models import ModelFacts

DEFAULT_SIDE = 512  # pixels, until the model is known
SPEED_SMOOTHING = 0.3  # weight of the latest measurement of the speed


def first_pass_size(request: Request, facts: ModelFacts | None) -> tuple[int, int]:
    """(width, height) in pixels of the first pass of a request, as far as it is known before the run."""
    own = facts.sample_size if facts else DEFAULT_SIDE
    width, height = request.width or own, request.height or own
    if isinstance(request.task, Outpaint):
        left, top, right, bottom = request.task.margins
        return width + left + right, height + top + bottom
    return width, height


def work_of(request: Request, facts: ModelFacts | None) -> int:
    """Width · height · computed steps · images of all passes."""
    width, height = first_pass_size(request, facts)
    steps: float = sum(computed_steps(request.steps)) if request.fast else request.steps
    match request.task:
        case Hires(scale=scale, strength=strength):
            steps *= 1 + scale * scale * strength
        case ImageToImage(strength=strength) | Inpaint(strength=strength):
            steps *= strength
    return round(width * height * steps * request.num_images * len(request.prompts))


def check_budget(request: Request, facts: ModelFacts | None, limits: Limits) -> None:
    """Raise ApiError for a request beyond a limit; the message names the limit."""
    sides = {"width": request.width or 1, "height": request.height or 1}
    if isinstance(request.task, Hires):
        sides = {name: round(side * request.task.scale) for name, side in sides.items()}
    if isinstance(request.task, Outpaint):
        left, top, right, bottom = request.task.margins
        sides = {"width": sides["width"] + left + right, "height": sides["height"] + top + bottom}
    values = {
        **{name: (side, limits.side, "pixels") for name, side in sides.items()},
        "steps": (request.steps, limits.steps, "steps"),
        "num_images": (request.num_images, limits.images, "images"),
        "prompt": (max(map(len, (*request.prompts, request.negative_prompt))), limits.prompt, "characters"),
    }
    for name, (value, limit, unit) in values.items():
        if value > limit:
            raise ApiError(422, f"{name}: {value} {unit} are more than the limit of {limit}.", code="limit_exceeded", param=name)
    check_work([request], limits, facts)


def check_work(requests: Sequence[Request], limits: Limits, facts: ModelFacts | None = None) -> None:
    """Raise ApiError if requests together are more work than one job may be."""
    if (work := sum(work_of(request, facts) for request in requests)) > limits.work:
        raise ApiError(
            422,
            f"width × height × images × steps is {work:.3g}, more than the limit of {limits.work:.3g}. Ask for fewer or smaller images.",
            code="limit_exceeded",
        )


class Speeds:
    """Seconds per unit of work of each model, as measured in the latest runs."""

    def __init__(self, known: Mapping[str, float]) -> None:
        self._lock, self._seconds = threading.Lock(), dict(known)

    def observe(self, model: str, work: int, seconds: float) -> None:
        """Note how long a run took."""
        if work > 0:
            with self._lock:
                last = self._seconds.get(model, seconds / work)
                self._seconds[model] = last + SPEED_SMOOTHING * (seconds / work - last)

    def seconds(self, model: str, work: int) -> float | None:
        """How long a run takes; None for a model that has not run yet."""
        with self._lock:
            known = self._seconds.get(model)
        return None if known is None else known * work

    def known(self) -> dict[str, float]:
        """All measurements, to be kept."""
        with self._lock:
            return dict(self._seconds)
