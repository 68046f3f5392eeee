"""The task of a request: one small frozen dataclass for each task, with its input images and settings.

    Request(prompt="a fox", task=ImageToImage(Image.open("cat.png"), strength=0.6))

`daguerre.pipelines.planners` does the work. `name` is the task's name on the command line and in saved requests.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache
from numbers import Real
from operator import index
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from daguerre.errors import DaguerreError, nearest
from daguerre.models.model_task import ModelTask
from daguerre.pipelines.images.input import InputImage

ResizeMode = Literal["crop", "pad", "stretch"]
PosteriorMode = Literal["mean", "sample"]
HiresUpscaler = Literal["lanczos", "latent"]
VQ_PRIOR: ModelTask = "vq-prior"  # also recorded as the sampler of the images of an autoregressive prior
MAX_EXACT = 2**53  # whole numbers below it are exact as floats
MAX_NOISE_LEVEL = 350  # of 1000 timesteps: the most noise on the small image that the ×4 upscaler was trained with

# Metadata of task fields: an input image, or one of a few texts.
IMAGE = {"image": True}
RESIZE_MODES, POSTERIOR_MODES, UPSCALERS = ({"choices": get_args(kind)} for kind in (ResizeMode, PosteriorMode, HiresUpscaler))


@dataclass(frozen=True)
class Task:
    """Base class of all tasks. A field of type `InputImage` also accepts a Pillow image or an array.

    model_tasks: the kinds of model that can do it (see `pipelines.capabilities`).
    """

    name: ClassVar[str]
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("text-to-image",)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = as_declared(plain_number(getattr(self, each.name)), _field_types(type(self))[each.name])
            object.__setattr__(self, each.name, value)
            if is_image(each) and value is not None:
                object.__setattr__(self, each.name, InputImage.from_any(value))
            allowed = each.metadata.get("choices")
            if allowed and value not in allowed:
                raise DaguerreError(f"{each.name} is {value!r}; it is one of {', '.join(allowed)}.{nearest(str(value), allowed)}")
        self.validate()

    def validate(self) -> None:
        """Raise DaguerreError for settings out of range."""

    def parameters(self) -> dict[str, object]:
        """The settings as other programs name them in the `parameters` text of an image."""
        return {}

    @property
    def input_images(self) -> dict[str, InputImage]:
        """The input images by field name."""
        return {each.name: value for each in fields(self) if isinstance(value := getattr(self, each.name), InputImage)}

    def with_input_images(self, images: Mapping[str, InputImage]) -> Self:
        """The same task with other images in these fields."""
        return replace(self, **images)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `task_from_json` reads it back, with images that are not opened yet."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"name": self.name, **{name: value.to_json() if isinstance(value, InputImage) else value for name, value in values.items()}}


@dataclass(frozen=True)
class TextToImage(Task):
    """Generate from noise and the prompt alone."""

    name: ClassVar[str] = "txt2img"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("text-to-image", VQ_PRIOR)


@dataclass(frozen=True)
class Hires(Task):
    """Generate at the requested size, upscale, and run img2img at the larger size ("hires fix").

    scale: how much larger both sides become, above 1 and up to 8.
    strength: strength of the img2img pass, 0 to 1; see `ImageToImage`.
    upscaler: "lanczos" upscales the decoded image and encodes it again, which is sharper; "latent" upscales the latents bilinearly, which
        is cheaper and needs a strength of 0.5 or more to be sharp.
    """

    scale: float = 2.0
    strength: float = 0.55
    upscaler: HiresUpscaler = field(default="lanczos", metadata=UPSCALERS)
    name: ClassVar[str] = "hires"

    def validate(self) -> None:
        check_strength(self.strength)
        check_number("scale", self.scale)
        if not 1 < self.scale <= 8:
            raise DaguerreError(f"scale is {self.scale:g}; a hires fix enlarges by more than 1 and up to 8 times, such as 2.")

    def parameters(self) -> dict[str, object]:
        upscaler = "Lanczos" if self.upscaler == "lanczos" else "Latent"
        return {"Denoising strength": f"{self.strength:g}", "Hires upscale": f"{self.scale:g}", "Hires upscaler": upscaler}


@dataclass(frozen=True)
class ImageToImage(Task):
    """Add noise to an image, then denoise it with the prompt (SDEdit: Meng et al. 2021, arXiv:2108.01073).

    strength: the share of the steps that run, 0 to 1. 0 returns the image as the autoencoder reconstructs it, 1 ignores it.
    resize_mode: how the image is fitted to the size: "crop" cuts its middle, "pad" repeats its edge pixels, "stretch" distorts it.
    latent: "mean" or a "sample" of the autoencoder's posterior; diffusers samples.
    """

    image: InputImage = field(metadata=IMAGE)
    strength: float = 0.8
    resize_mode: ResizeMode = field(default="crop", metadata=RESIZE_MODES)
    latent: PosteriorMode = field(default="mean", metadata=POSTERIOR_MODES)
    name: ClassVar[str] = "img2img"

    def validate(self) -> None:
        check_strength(self.strength)

    def parameters(self) -> dict[str, object]:
        return {"Denoising strength": f"{self.strength:g}"}


@dataclass(frozen=True)
class Inpaint(Task):
    """Generate the masked part of an image; every byte outside the mask stays as it is.

    mask: white is generated, black is kept, grey is blended; of the image's proportions. In a partly transparent mask the transparent part
        is generated. None uses the transparent part of the image.
    strength: as in `ImageToImage`, for the masked part.
    mask_blur: width in pixels of the blend from the mask's border inwards; None is the autoencoder's downsampling factor.
    latent: as in `ImageToImage`.
    crop_padding: process only the masked part with so many pixels around it, at the requested size; a small part of a large image gets
        all the model's detail. None processes the whole image.
    """

    image: InputImage = field(metadata=IMAGE)
    mask: InputImage | None = field(default=None, metadata=IMAGE)
    strength: float = 1.0
    mask_blur: int | None = None
    latent: PosteriorMode = field(default="mean", metadata=POSTERIOR_MODES)
    crop_padding: int | None = None
    name: ClassVar[str] = "inpaint"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("text-to-image", "inpainting")

    def validate(self) -> None:
        check_strength(self.strength)
        check_pixels("mask_blur", self.mask_blur)
        check_pixels("crop_padding", self.crop_padding)

    def parameters(self) -> dict[str, object]:
        blur = {} if self.mask_blur is None else {"Mask blur": self.mask_blur}
        cropped = {} if self.crop_padding is None else {"Inpaint area": "Only masked", "Masked area padding": self.crop_padding}
        return {"Denoising strength": f"{self.strength:g}", **blur, **cropped}


@dataclass(frozen=True)
class Outpaint(Task):
    """Extend an image beyond its edges by so many pixels; every byte of the image stays as it is.

    mask_blur: as in `Inpaint`, from the image's edges outwards.
    strength: as in `Inpaint`, starting from repeated edge pixels; None is 1 for inpainting models and 0.8 for others, which at 1 tend to
        repeat the subject in the margins.
    """

    image: InputImage = field(metadata=IMAGE)
    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    mask_blur: int | None = None
    strength: float | None = None
    name: ClassVar[str] = "outpaint"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("text-to-image", "inpainting")

    def validate(self) -> None:
        check_pixels("mask_blur", self.mask_blur)
        if self.strength is not None:
            check_strength(self.strength)
        if min(self.margins) < 0 or not any(self.margins):
            raise DaguerreError(f"left, top, right and bottom are {self.margins}; none may be below 0, and one must be above 0.")

    @property
    def margins(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.right, self.bottom


@dataclass(frozen=True)
class Completion(Task):
    """Sample the lower rows of an image with an autoregressive prior, given the upper rows (Esser et al. 2021, arXiv:2012.09841, fig. 4).

    keep: the share of the rows that stays, above 0 and below 1. resize_mode: as in `ImageToImage`.
    map: condition map of the whole image, for a prior that needs one.
    """

    image: InputImage = field(metadata=IMAGE)
    keep: float = 0.5
    resize_mode: ResizeMode = field(default="crop", metadata=RESIZE_MODES)
    map: InputImage | None = field(default=None, metadata=IMAGE)
    name: ClassVar[str] = "complete"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = (VQ_PRIOR,)

    def validate(self) -> None:
        check_number("keep", self.keep)
        if not 0 < self.keep < 1:
            raise DaguerreError(f"keep is {self.keep!r}; it lies between 0 and 1, such as 0.5 for the upper half.")


@dataclass(frozen=True)
class MapToImage(Task):
    """Generate an image from a condition map: classes, edges or a small image, as the model was trained.

    image: the map. Semantic latent diffusion models take a map whose grey values are class numbers, or in the colours of training.
    """

    image: InputImage = field(metadata=IMAGE)
    name: ClassVar[str] = "from-map"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = (VQ_PRIOR, "semantic", "map")


@dataclass(frozen=True)
class LayoutToImage(Task):
    """Generate an image from boxes; the prompt lists them (see `conditioning.bbox_tokens`)."""

    name: ClassVar[str] = "layout"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("layout",)


@dataclass(frozen=True)
class Colorize(Task):
    """Add colours to a grey image, whose own are ignored; its brightness stays, and its size, unless the request has one."""

    image: InputImage = field(metadata=IMAGE)
    resize_mode: ResizeMode = field(default="crop", metadata=RESIZE_MODES)
    name: ClassVar[str] = "colorize"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("colorization",)


@dataclass(frozen=True)
class InstructPix2Pix(Task):
    """Edit an image by an instruction as the prompt, such as "make it winter".

    image_guidance_scale: scale s_I of the guidance by the image, next to the request's guidance scale s_T; 1 disables it.
    resize_mode: as in `ImageToImage`.
    """

    image: InputImage = field(metadata=IMAGE)
    image_guidance_scale: float = 1.5
    resize_mode: ResizeMode = field(default="crop", metadata=RESIZE_MODES)
    name: ClassVar[str] = "pix2pix"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("instruct-pix2pix",)

    def validate(self) -> None:
        check_number("image_guidance_scale", self.image_guidance_scale)
        if not 0 <= self.image_guidance_scale <= 100:
            raise DaguerreError(f"image_guidance_scale is {self.image_guidance_scale!r}; it is a number from 0 to 100, such as 1.5.")

    def parameters(self) -> dict[str, object]:
        return {"Image CFG scale": f"{self.image_guidance_scale:g}"}


@dataclass(frozen=True)
class DepthToImage(Task):
    """Generate an image that follows a depth map, from noise or from another image.

    depth: a grey map, brighter where things are nearer: 8 bits, 16 bits, or floats in any unit (Pillow mode "F").
    image: starts img2img from this image, of the depth map's proportions; None starts from noise.
    strength, latent: as in `ImageToImage`.
    """

    depth: InputImage = field(metadata=IMAGE)
    image: InputImage | None = field(default=None, metadata=IMAGE)
    strength: float = 0.8
    latent: PosteriorMode = field(default="mean", metadata=POSTERIOR_MODES)
    name: ClassVar[str] = "depth2img"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("depth",)

    def validate(self) -> None:
        check_strength(self.strength)

    def parameters(self) -> dict[str, object]:
        return {} if self.image is None else {"Denoising strength": f"{self.strength:g}"}


@dataclass(frozen=True)
class Upscale(Task):
    """Upscale an image, by four with most models, with a diffusion model that adds detail.

    noise: timesteps of noise, 0 to 350 of 1000, on the small image that the model is conditioned on; more noise invents more detail. Latent
        diffusion's own super-resolution, which takes no prompt, ignores it.
    """

    image: InputImage = field(metadata=IMAGE)
    noise: int = 20
    name: ClassVar[str] = "upscale"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("upscaling",)

    def validate(self) -> None:
        if not isinstance(self.noise, int) or not 0 <= self.noise <= MAX_NOISE_LEVEL:
            raise DaguerreError(f"noise is {self.noise!r}; it is a whole number of timesteps from 0 to {MAX_NOISE_LEVEL}.")


@dataclass(frozen=True)
class ImageVariation(Task):
    """Generate images with the content of another image, given by its CLIP embedding; the model takes no prompt.

    image: its middle square is encoded.
    """

    image: InputImage = field(metadata=IMAGE)
    name: ClassVar[str] = "variations"
    model_tasks: ClassVar[tuple[ModelTask, ...]] = ("image-variation",)


@dataclass(frozen=True)
class Inversion(Task):
    """Find the noise of an image by DDIM inversion and generate from it: without a prompt the same image, with one a changed image.

    other: a second image. The noise then lies between those of the two, along the sphere.
    weight: 0 is the noise of the first image, 1 that of the second.
    resize_mode: as in `ImageToImage`.
    """

    image: InputImage = field(metadata=IMAGE)
    other: InputImage | None = field(default=None, metadata=IMAGE)
    weight: float = 0.5
    resize_mode: ResizeMode = field(default="crop", metadata=RESIZE_MODES)
    name: ClassVar[str] = "invert"

    def validate(self) -> None:
        check_number("weight", self.weight)
        if not 0 <= self.weight <= 1:
            raise DaguerreError(f"weight is {self.weight!r}; it is between 0 (the first image) and 1 (the second).")


TASKS: Mapping[str, type[Task]] = {task.name: task for task in (
    TextToImage, Hires, ImageToImage, Inpaint, Outpaint, InstructPix2Pix, DepthToImage, Upscale, ImageVariation, Completion, MapToImage,
    LayoutToImage, Colorize, Inversion,
)}  # fmt: skip


def is_image(task_field: "Field[Any]") -> bool:
    """Whether a field of a task holds an input image."""
    return task_field.metadata.get("image", False)


def task_from_json(value: Mapping[str, Any]) -> Task:
    """Read what `Task.to_json` wrote, or a part of it.

    Raises:
        DaguerreError: an unknown task or field, or a missing image.
    """
    name = str(value.get("name"))
    if name not in TASKS:
        raise DaguerreError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.{nearest(name, TASKS)}")
    task_class = TASKS[name]
    known = {each.name: each for each in fields(task_class)}
    values = {}
    for key, content in value.items():
        if key == "name":
            continue
        if key not in known:
            raise DaguerreError(f"The task {name} has no field {key!r}; it has {', '.join(known) or 'none'}.{nearest(key, known)}")
        values[key] = InputImage.from_json(content) if is_image(known[key]) and isinstance(content, Mapping) else content
    try:
        return task_class(**values)
    except TypeError as error:
        raise DaguerreError(f"The task {name} is incomplete or has a value of a wrong type: {error}.") from error


def plain_number(value: Any) -> Any:
    """A number of numpy, PyTorch or another library as a bool, int or float of Python, so that JSON can store it; all else unchanged."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if getattr(value, "ndim", None) == 0:
        return value.item()
    with suppress(TypeError):
        return index(value)
    return float(value) if isinstance(value, Real) else value


def as_declared(value: Any, declared: Any) -> Any:
    """A whole number as a float if the field is declared as one, also in tuples: 2 and 2.0 are the same request, in the same JSON."""
    if isinstance(value, tuple):
        kinds = [kind for each in (declared, *get_args(declared)) if get_origin(each) is tuple for kind in get_args(each)]
        return tuple(as_declared(each, kinds[0]) for each in value) if kinds else value
    floats = float in (declared, *get_args(declared)) and int not in (declared, *get_args(declared))
    return float(value) if floats and type(value) is int and abs(value) < MAX_EXACT else value


@cache
def _field_types(task: type[Task]) -> Mapping[str, Any]:
    return get_type_hints(task)


def check_number(name: str, value: object) -> None:
    """Raise DaguerreError for anything but a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DaguerreError(f"{name} is {value!r}; it is a number.")


def check_strength(strength: object) -> None:
    """Raise DaguerreError for anything but a number from 0 to 1."""
    if not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise DaguerreError(f"strength is {strength!r}; it is between 0 (the image as it is) and 1 (ignores it).")


def check_pixels(name: str, value: object) -> None:
    """Raise DaguerreError for anything but None or a number of pixels."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise DaguerreError(f"{name} is {value!r}; it is a number of pixels, 0 or more.")
