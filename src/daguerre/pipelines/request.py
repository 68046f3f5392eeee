"""What images to generate: one frozen value, the same from the command line, Python, a saved image and a server."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from types import NoneType
from typing import Any, Literal, TypedDict, get_args, get_type_hints

from daguerre.adapters.record import AdapterRecord, record_from_json
from daguerre.errors import DaguerreError, nearest
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.tasks import Task, TextToImage, as_declared, plain_number, task_from_json

MAX_SEED = 2**63 - 1
MAX_GUIDANCE = 1e4  # beyond it float32 rounds the image away
REQUEST_CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "initial_noise": (None, "variance_preserving", "sigma_max"),
    "tiling": ("none", "both", "x", "y"),
}
# Numbers with a range: the lowest, the highest, and what the two ends mean.
RANGES: Mapping[str, tuple[float, float, str]] = {
    "eta": (0, 1, "0 (no fresh noise) and 1"),
    "guidance_rescale": (0, 1, "0 (none) and 1"),
    "refiner_switch_at": (0, 1, "0 (the refiner runs all steps) and 1 (it runs none), such as 0.8"),
}


@dataclass(frozen=True)
class Variation:
    """Initial noise interpolated towards the noise of another seed ("variation seed", "variation strength").

    seed: the other seed; of several images each moves towards the noise of seed, seed + 1, …
    strength: 0 is the request's own noise, 1 the other seed's. Interpolated along the sphere (see `pipelines.context.slerp`).
    """

    seed: int
    strength: float

    def __post_init__(self) -> None:
        for name in ("seed", "strength"):
            object.__setattr__(self, name, as_declared(plain_number(getattr(self, name)), {"seed": int, "strength": float}[name]))
        if not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise DaguerreError(f"The variation seed is {self.seed!r}; it is a whole number from 0 to {MAX_SEED}.")
        if not isinstance(self.strength, int | float) or not 0 <= self.strength <= 1:
            raise DaguerreError(f"The variation strength is {self.strength!r}; it is between 0 (the image itself) and 1.")


@dataclass(frozen=True)
class Request:
    """A request for images. The same request with the same model on the same machine gives the same bytes.

    Each of several prompts gets `num_images` images, in order: image i has prompt `i // num_images` and the noise of seed
    `seed + i % num_images`, so it equals the image of that prompt and seed alone (see `split`).

    Attributes:
        prompt: one text or several; a list becomes a tuple.
        negative_prompt: what to avoid, for every prompt.
        steps: sampler steps.
        sampler: a name in `daguerre.diffusion.SAMPLERS`, or another program's, such as "DPM++ 2M Karras"; None is the model's own, else
            "dpmpp_2m".
        spacing: a name in `daguerre.diffusion.SPACINGS`; None is the one in the sampler's name, else the model's own, else "trailing".
        guidance_scale: scale s of classifier-free guidance, weights (s, 1 − s) on (prompt, negative prompt); 1 disables guidance. None is
            the model's own.
        guidance_rescale: 0 to 1; reduces overexposure from strong guidance (Lin et al. 2023, arXiv:2305.08891, section 3.4).
        guidance_interval: (low, high), shares of the steps between which guidance applies; elsewhere its scale is 1. (0, 0.5) guides the
            first half (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        cfg_plus_plus: use CFG++ (Chung et al. 2024, arXiv:2406.08070); needs the sampler "euler" and a guidance scale from 0 to 1.
        dynamic_threshold: quantile in (0, 1] for dynamic thresholding, for models of pixels (Saharia et al. 2022, arXiv:2205.11487).
        clip_skip: which CLIP layer encodes the prompt, counted from the last, which is 1.
        seed: of the first image's noise.
        num_images: images per prompt.
        width, height: in pixels; None is the model's own size.
        eta: share of fresh noise in each step, 0 to 1, for samplers that support it; None is the sampler's own.
        initial_noise: scale of the initial noise: "variance_preserving" is √(σ² + 1), "sigma_max" is σ; None is the model's own, else
            "variance_preserving".
        task: `TextToImage`, or another task of `pipelines.tasks` with its input images and settings.
        variation: interpolates the initial noise towards another seed's.
        refiner_switch_at: share of the noise levels after which the refiner of a model takes over; no effect without a refiner.
        tiling: axes along which the image repeats seamlessly: "none", "both", "x" or "y".
        temperature, top_k, top_p: sampling settings of autoregressive priors (see `models.autoregressive.Sampling`), which have no steps,
            sampler, spacing, negative prompt or guidance.
        adapters: records of the adapters attached to the model (see `adapters.with_adapters`); filled in from the model when images are
            generated. A request that has them runs only on a model with the same adapters.
        control_images: the images of the adapters that take one, in order: a condition map for each ControlNet and T2I-Adapter, an image
            (or several) for each IP-Adapter. Pillow images, arrays or `InputImage`; a map of another size is resized.
        fast: forecast the predicted image in about half of the steps instead of computing it (see `diffusion.forecast_x0`). Needs 10 steps
            or more and a deterministic sampler with one evaluation per step.
        low_memory: one image and one condition at a time, tiled decoding; set automatically if a run would not fit into memory.

    Raises:
        DaguerreError: a value is out of range or of a wrong type.
    """

    prompt: str | Sequence[str] = ""
    negative_prompt: str = ""
    steps: int = 20
    sampler: str | None = None
    spacing: str | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    cfg_plus_plus: bool = False
    dynamic_threshold: float | None = None
    clip_skip: int | None = None
    seed: int = 0
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    eta: float | None = None
    initial_noise: Literal["variance_preserving", "sigma_max"] | None = None
    task: Task = TextToImage()
    variation: Variation | None = None
    refiner_switch_at: float = 0.8
    tiling: Literal["none", "both", "x", "y"] = "none"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    adapters: tuple[AdapterRecord, ...] = ()
    control_images: tuple[InputImage, ...] = ()
    fast: bool = False
    low_memory: bool = False

    def __post_init__(self) -> None:
        for name, expected in _field_types().items():
            value = plain_number(getattr(self, name))
            if isinstance(value, list | tuple):
                value = tuple(map(InputImage.from_any if name == "control_images" else plain_number, value))
            if not _has_type(name, value, expected):
                raise DaguerreError(f"{name} is {value!r}; it must be {_noun(name, expected)}.")
            object.__setattr__(self, name, as_declared(value, expected))
        for name in ("steps", "num_images", "width", "height", "clip_skip"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DaguerreError(f"{name} is {value}; it must be 1 or more.")
        for text in (*self.prompts, self.negative_prompt):
            check_unicode("prompt", text)
        if not self.prompts:
            raise DaguerreError("There is no prompt; give at least one text, which may be empty.")
        if not 0 <= self.seed <= MAX_SEED - self.num_images:
            raise DaguerreError(f"seed is {self.seed}; it must be between 0 and {MAX_SEED - self.num_images}.")
        if self.guidance_scale is not None and not abs(self.guidance_scale) <= MAX_GUIDANCE:  # NaN fails, too
            raise DaguerreError(f"guidance_scale is {self.guidance_scale:g}; it is a number such as 7.5, between ±{MAX_GUIDANCE:g}.")
        for name, (low, high, meaning) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise DaguerreError(f"{name} is {value}; it must be between {meaning}.")
        if self.dynamic_threshold is not None and not 0 < self.dynamic_threshold <= 1:
            raise DaguerreError(f"dynamic_threshold is {self.dynamic_threshold}; it is a quantile above 0 and up to 1, such as 0.995.")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1:
            raise DaguerreError(f"guidance_interval is {self.guidance_interval}; it is two shares of the steps, such as (0.1, 0.8).")
        for name, allowed in REQUEST_CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                texts = [text for text in allowed if text is not None]
                raise DaguerreError(f"{name} is {value!r}; it is one of {', '.join(texts)}.{nearest(value, texts)}")

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, one or several."""
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def items(self) -> tuple[tuple[str, int], ...]:
        """The prompt and the seed of each image, in order."""
        return tuple((single.prompts[0], single.seed) for single in self.split())

    def split(self) -> tuple["Request", ...]:
        """One request for each image, which generates that image alone, in order."""
        return tuple(
            replace(self, prompt=prompt, num_images=1, **self._seed_fields(i)) for prompt in self.prompts for i in range(self.num_images)
        )

    def _seed_fields(self, i: int) -> dict[str, Any]:
        """The fields that differ for image i of a prompt."""
        if self.variation is None:
            return {"seed": self.seed + i}
        return {"variation": replace(self.variation, seed=self.variation.seed + i)}

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `from_json` reads it back, with input images that are not opened yet."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["prompt"] = self.prompt if isinstance(self.prompt, str) else list(self.prompt)
        values["guidance_interval"] = None if self.guidance_interval is None else list(self.guidance_interval)
        values["task"] = self.task.to_json()
        values["adapters"] = [record.to_json() for record in self.adapters]
        values["control_images"] = [image.to_json() for image in self.control_images]
        values["variation"] = None if self.variation is None else asdict(self.variation)
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Request":
        """Read what `to_json` wrote, or a part of it.

        Raises:
            DaguerreError: an unknown field, or a value out of range; names it.
        """
        return with_fields(cls(), value)


class RequestFields(TypedDict, total=False):
    """The fields of `Request` as keyword arguments, so that editors complete and check them; see `Request` for their meaning."""

    prompt: str | Sequence[str]
    negative_prompt: str
    steps: int
    sampler: str | None
    spacing: str | None
    guidance_scale: float | None
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    cfg_plus_plus: bool
    dynamic_threshold: float | None
    clip_skip: int | None
    seed: int
    num_images: int
    width: int | None
    height: int | None
    eta: float | None
    initial_noise: Literal["variance_preserving", "sigma_max"] | None
    task: Task
    variation: Variation | None
    refiner_switch_at: float
    tiling: Literal["none", "both", "x", "y"]
    temperature: float
    top_k: int | None
    top_p: float
    adapters: tuple[AdapterRecord, ...]
    control_images: tuple[InputImage, ...]
    fast: bool
    low_memory: bool


def check_unicode(name: str, text: str) -> None:
    """Raise DaguerreError if a text holds half a character: from bytes that are not UTF-8, or half of a UTF-16 pair."""
    for position, character in enumerate(text, 1):
        if "\ud800" <= character <= "\udfff":
            byte = f"the byte 0x{ord(character) - 0xDC00:02x}, which is not UTF-8" if character >= "\udc80" else "half of a UTF-16 pair"
            raise DaguerreError(f"Character {position} of the {name} {text!r} is {byte}; save the text or script as UTF-8.")


def with_fields(request: Request, changes: Mapping[str, Any]) -> Request:
    """The request with some fields replaced.

    Raises:
        DaguerreError: an unknown field, or a value out of range; names it.
    """
    names = [field.name for field in fields(Request)]
    for name in changes:
        if name not in names:
            raise DaguerreError(f"A request has no field {name!r}; it has {', '.join(names)}.{nearest(name, names)}")
    return replace(request, **{name: _from_json(name, value) for name, value in changes.items()})


@cache
def _field_types() -> Mapping[str, Any]:
    return get_type_hints(Request)


def _from_json(name: str, value: Any) -> Any:
    """The value of a field, read from a JSON object where it is one."""
    if name == "task" and isinstance(value, Mapping):
        return task_from_json(value)
    if name == "adapters" and isinstance(value, list | tuple):
        return tuple(record_from_json(each) if isinstance(each, Mapping) else each for each in value)
    if name == "control_images" and isinstance(value, list | tuple):
        return tuple(InputImage.from_json(each) if isinstance(each, Mapping) else each for each in value)
    if name == "variation" and isinstance(value, Mapping):
        if set(value) != {"seed", "strength"}:
            raise DaguerreError(f"A variation has the fields seed and strength, not {', '.join(value) or 'none'}.")
        return Variation(**value)
    return value


def _noun(name: str, expected: Any) -> str:
    """What a field may be, for error messages."""
    special = {"prompt": "a text or a list of texts", "guidance_interval": "two numbers or None", "adapters": "a list of adapter records"}
    special["control_images"] = "a list of images"
    nouns = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", Variation: "a Variation", Task: "a Task"}
    kind = next((kind for kind in nouns if kind is expected or kind in get_args(expected)), str)
    return special.get(name, nouns[kind] + (" or None" if NoneType in get_args(expected) else ""))


def _has_type(name: str, value: object, expected: Any) -> bool:
    """Whether a value is of a field's type; an int is a float, and a bool is no number."""
    if name == "prompt":
        return isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(text, str) for text in value))
    if name == "guidance_interval":
        return value is None or (isinstance(value, tuple) and len(value) == 2 and all(_has_type("", share, float) for share in value))
    if name in ("adapters", "control_images"):
        kind = AdapterRecord if name == "adapters" else InputImage
        return isinstance(value, tuple) and all(isinstance(each, kind) for each in value)
    if name in REQUEST_CHOICES:
        return value is None or isinstance(value, str)
    if expected is bool or isinstance(value, bool):
        return expected is bool and isinstance(value, bool)
    return isinstance(value, expected) or (isinstance(value, int) and isinstance(0.0, expected))
