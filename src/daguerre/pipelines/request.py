"""What a picture is asked for with: one frozen value, the same from the command line, Python, a saved picture and a server."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_type_hints

from daguerre.errors import DaguerreError, nearest

MAX_SEED = 2**63 - 1
STARTS = ("variance_preserving", "sigma_max")


@dataclass(frozen=True)
class Request:
    """A request for pictures; with one model and one machine it means the same bytes each time.

    Several prompts are drawn `count` times each, in order: picture i is prompt `i // count` with the noise of seed
    `seed + i % count`, so that it is the picture which that prompt and that seed give alone (see `singles`).

    Attributes:
        prompt: what to draw, one text or several; a list becomes a tuple.
        negative: what to stay away from, for every prompt.
        steps: how many noise levels the sampler visits.
        sampler: a name in `daguerre.diffusion.SAMPLERS`, or as others spell it, "DPM++ 2M Karras".
        spacing: a name in `daguerre.diffusion.SPACINGS`; None is the one that the sampler's name holds, else "trailing".
        guidance: the scale s of classifier-free guidance, weights (s, 1 − s) over (prompt, negative); 1 leaves the negative out.
        seed: of the first picture's noise.
        count: pictures for each prompt.
        width, height: in pixels; None is the model's own size.
        eta: share of fresh noise in each step, 0 to 1, for the samplers that take it; None is the sampler's own.
        start: what the first noise is scaled by: "variance_preserving", √(σ² + 1), or "sigma_max", σ (see `diffusion.start`).
        temperature, top_k, top_p: how a prior over codes draws each of them (see `models.codes.Sampling`). To it steps, sampler, spacing,
            negative and guidance say nothing, nor these to a diffusion model.

    Raises:
        DaguerreError: a value that no model could meet.
    """

    prompt: str | tuple[str, ...] = ""
    negative: str = ""
    steps: int = 20
    sampler: str = "dpmpp_2m"
    spacing: str | None = None
    guidance: float = 5.0
    seed: int = 0
    count: int = 1
    width: int | None = None
    height: int | None = None
    eta: float | None = None
    start: Literal["variance_preserving", "sigma_max"] = "variance_preserving"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.prompt, list):
            object.__setattr__(self, "prompt", tuple(self.prompt))
        for name, kind in get_type_hints(Request).items():
            value = getattr(self, name)
            if not _fits(value, str if name in ("prompt", "start") else kind):
                raise DaguerreError(f"{name} is {value!r}, which is not what a request takes there ({Request.__annotations__[name]}).")
        for name in ("steps", "count", "width", "height"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DaguerreError(f"{name} is {value}; it must be 1 or more.")
        if not self.prompts:
            raise DaguerreError("There is no prompt; give at least one text, which may be empty.")
        if not 0 <= self.seed <= MAX_SEED - self.count:
            raise DaguerreError(f"seed is {self.seed}; it must be between 0 and {MAX_SEED - self.count}.")
        if not math.isfinite(self.guidance):
            raise DaguerreError(f"guidance is {self.guidance}; it must be a finite number, such as 5.")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise DaguerreError(f"eta is {self.eta}; it must be between 0 (no fresh noise) and 1.")
        if self.start not in STARTS:
            raise DaguerreError(f"start is {self.start!r}; it is one of {', '.join(STARTS)}.{nearest(self.start, STARTS)}")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt, one or several."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def each(self) -> tuple[tuple[str, int], ...]:
        """The prompt and the seed of each picture, in the order of the pictures."""
        return tuple((prompt, self.seed + i) for prompt in self.prompts for i in range(self.count))

    def singles(self) -> tuple["Request", ...]:
        """One request for each picture, which makes that picture alone, in the order of the pictures."""
        return tuple(replace(self, prompt=prompt, seed=seed, count=1) for prompt, seed in self.each)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` gives it back."""
        return {**asdict(self), "prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Request":
        """Read what `to_json` wrote, or a part of it.

        Raises:
            DaguerreError: a field that there is not, or a value that no model could meet; names it.
        """
        return changed(cls(), value)


def changed(request: Request, changes: Mapping[str, Any]) -> Request:
    """The request with some fields replaced.

    Raises:
        DaguerreError: a field that there is not, or a value that no model could meet; names it.
    """
    names = [field.name for field in fields(Request)]
    for name in changes:
        if name not in names:
            raise DaguerreError(f"A request has no field {name!r}; it has {', '.join(names)}.{nearest(name, names)}")
    return replace(request, **changes)


def _fits(value: object, kind: type) -> bool:
    """Whether a value is of a field's type; whole numbers are numbers, and truth is none."""
    if isinstance(value, tuple):
        return all(isinstance(text, str) for text in value)
    return not isinstance(value, bool) and (isinstance(value, kind) or (isinstance(value, int) and isinstance(0.0, kind)))
