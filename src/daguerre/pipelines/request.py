"""What a picture is asked for with: one frozen value, the same from the command line, Python, a saved picture and a server."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_type_hints

from daguerre.errors import DaguerreError, nearest
from daguerre.pipelines.tasks import Task, TextToImage, task_from_json

MAX_SEED = 2**63 - 1
MAX_GUIDANCE = 1e4  # beyond it float32 rounds the picture away
REQUEST_CHOICES: Mapping[str, tuple[str, ...]] = {
    "initial_noise": ("variance_preserving", "sigma_max"),
    "tiling": ("none", "both", "x", "y"),
}


@dataclass(frozen=True)
class Variation:
    """The first noise moved towards that of another seed, along the sphere; weight 0 is the request's own seed, 1 the other.

    Of several pictures each keeps the request's seed and moves towards the noise of seed, seed + 1, …
    """

    seed: int
    weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise DaguerreError(f"The variation's seed is {self.seed!r}; it is a whole number from 0 to {MAX_SEED}.")
        if not isinstance(self.weight, int | float) or not 0 <= self.weight <= 1:
            raise DaguerreError(f"The variation's weight is {self.weight!r}; it is between 0 (the picture itself) and 1.")


@dataclass(frozen=True)
class Request:
    """A request for pictures; with one model and one machine it means the same bytes each time.

    Several prompts are drawn `count` times each, in order: picture i is prompt `i // count` with the noise of seed
    `seed + i % count`, so that it is the picture which that prompt and that seed give alone (see `singles`).

    What is particular to a task stands in `task`; all other fields hold for every task.

    Attributes:
        prompt: what to draw, one text or several; a list becomes a tuple.
        negative: what to stay away from, for every prompt.
        steps: how many noise levels the sampler visits.
        sampler: a name in `daguerre.diffusion.SAMPLERS`, or as others spell it, "DPM++ 2M Karras".
        spacing: a name in `daguerre.diffusion.SPACINGS`; None is the one that the sampler's name holds, else "trailing".
        guidance: the scale s of classifier-free guidance, weights (s, 1 − s) over (prompt, negative); 1 leaves the negative out.
            None is the model's own.
        seed: of the first picture's noise.
        count: pictures for each prompt.
        width, height: in pixels; None is the model's own size.
        eta: share of fresh noise in each step, 0 to 1, for the samplers that take it; None is the sampler's own.
        start: what the first noise is scaled by: "variance_preserving", √(σ² + 1), or "sigma_max", σ (see `diffusion.start`).
        task: what is made of what: `TextToImage` unless told, or one of the others in `pipelines.tasks`, with its pictures and settings.
        variation: a step towards another seed's noise.
        refine_at: the share of the noise levels after which a model's refiner takes over (see `pipelines.refiner`); without one it says
            nothing.
        tiling: along which axes the images wrap around, as tiles do: "none", "both", "x" or "y".
        temperature, top_k, top_p: how a prior over codes draws each of them (see `models.codes.Sampling`). To it steps, sampler, spacing,
            negative and guidance say nothing, nor these to a diffusion model.
        low_memory: one picture and one condition at a time, and decoding in tiles, whatever memory there is (see `pipelines.sparing`).

    Raises:
        DaguerreError: a value that no model could meet.
    """

    prompt: str | tuple[str, ...] = ""
    negative_prompt: str = ""
    steps: int = 20
    sampler: str = "dpmpp_2m"
    spacing: str | None = None
    guidance_scale: float | None = None
    seed: int = 0
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    eta: float | None = None
    initial_noise: Literal["variance_preserving", "sigma_max"] = "variance_preserving"
    task: Task = TextToImage()
    variation: Variation | None = None
    refiner_switch_at: float = 0.8
    tiling: Literal["none", "both", "x", "y"] = "none"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    low_memory: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.prompt, list):
            object.__setattr__(self, "prompt", tuple(self.prompt))
        for name, kind in get_type_hints(Request).items():
            value = getattr(self, name)
            if not _fits(value, str if name == "prompt" or name in REQUEST_CHOICES else kind):
                raise DaguerreError(f"{name} is {value!r}, which is not what a request takes there ({Request.__annotations__[name]}).")
        for name in ("steps", "num_images", "width", "height"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DaguerreError(f"{name} is {value}; it must be 1 or more.")
        if not self.prompts:
            raise DaguerreError("There is no prompt; give at least one text, which may be empty.")
        if not 0 <= self.seed <= MAX_SEED - self.num_images:
            raise DaguerreError(f"seed is {self.seed}; it must be between 0 and {MAX_SEED - self.num_images}.")
        if self.guidance_scale is not None and not abs(self.guidance_scale) <= MAX_GUIDANCE:  # which NaN is not, either
            raise DaguerreError(f"guidance is {self.guidance_scale:g}; it is a number such as 5, no further from 0 than {MAX_GUIDANCE:g}.")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise DaguerreError(f"eta is {self.eta}; it must be between 0 (no fresh noise) and 1.")
        if not 0 <= self.refiner_switch_at <= 1:
            raise DaguerreError(
                f"refine_at is {self.refiner_switch_at}; it is between 0 (the refiner walks all) and 1 (nothing), such as 0.8."
            )
        for name, allowed in REQUEST_CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise DaguerreError(f"{name} is {value!r}; it is one of {', '.join(allowed)}.{nearest(value, allowed)}")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt, one or several."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def items(self) -> tuple[tuple[str, int], ...]:
        """The prompt and the seed of each picture, in the order of the pictures."""
        return tuple((single.prompts[0], single.seed) for single in self.split())

    def split(self) -> tuple["Request", ...]:
        """One request for each picture, which makes that picture alone, in the order of the pictures."""
        return tuple(
            replace(self, prompt=prompt, num_images=1, **self._seeds(i)) for prompt in self.prompts for i in range(self.num_images)
        )

    def _seeds(self, i: int) -> dict[str, Any]:
        """What the i-th picture of a prompt has for itself."""
        if self.variation is None:
            return {"seed": self.seed + i}
        return {"variation": replace(self.variation, seed=self.variation.seed + i)}

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` gives it back, the task's pictures not opened."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["prompt"] = self.prompt if isinstance(self.prompt, str) else list(self.prompt)
        values["task"] = self.task.to_json()
        values["variation"] = None if self.variation is None else asdict(self.variation)
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Request":
        """Read what `to_json` wrote, or a part of it.

        Raises:
            DaguerreError: a field that there is not, or a value that no model could meet; names it.
        """
        return with_fields(cls(), value)


def with_fields(request: Request, changes: Mapping[str, Any]) -> Request:
    """The request with some fields replaced.

    Raises:
        DaguerreError: a field that there is not, or a value that no model could meet; names it.
    """
    names = [field.name for field in fields(Request)]
    for name in changes:
        if name not in names:
            raise DaguerreError(f"A request has no field {name!r}; it has {', '.join(names)}.{nearest(name, names)}")
    return replace(request, **{name: _value(name, value) for name, value in changes.items()})


def _value(name: str, value: Any) -> Any:
    """A field's value, where JSON has an object for it."""
    if name == "task" and isinstance(value, Mapping):
        return task_from_json(value)
    if name == "variation" and isinstance(value, Mapping):
        if set(value) != {"seed", "weight"}:
            raise DaguerreError(f"A variation has a seed and a weight, and got {', '.join(value) or 'nothing'}.")
        return Variation(**value)
    return value


def _fits(value: object, kind: type) -> bool:
    """Whether a value is of a field's type; whole numbers are numbers, and truth is none."""
    if isinstance(value, tuple):
        return all(isinstance(text, str) for text in value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, kind) or (isinstance(value, int) and isinstance(0.0, kind))
