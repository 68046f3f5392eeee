"""What can be asked for besides words: one small frozen value for each task, with its pictures and its own settings.

    Request(prompt="a fox", task=ImageToImage(Image.open("cat.png"), strength=0.6))

How each is done stands in `pipelines.plans`. `name` is the task's name on the command line and in saved requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from daguerre.errors import DaguerreError, nearest
from daguerre.pipelines.images.input import InputImage

ResizeMode = Literal["crop", "pad", "stretch"]
PosteriorMode = Literal["mean", "sample"]
HiresUpscaler = Literal["pixels", "latents"]
VQ_PRIOR = "code by code"  # the kind of model that is a prior over codes
MAX_NOISE_LEVEL = 350  # steps of 1000 on the small picture that the ×4 upscaler was trained with
TASK_CHOICES: Mapping[str, tuple[str, ...]] = {
    "resize_mode": ("crop", "pad", "stretch"),
    "latent": ("mean", "sample"),
    "upscaler": ("lanczos", "latent"),
}


@dataclass(frozen=True)
class Task:
    """What all tasks share. A field of type `Given` takes a picture of Pillow's or an array, too.

    kinds: the kinds of model that can do it (see `pipelines.abilities`).
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("text-to-image",)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in GIVEN and value is not None:
                object.__setattr__(self, field.name, InputImage.from_any(value))
            if field.name in TASK_CHOICES and value not in TASK_CHOICES[field.name]:
                allowed = TASK_CHOICES[field.name]
                raise DaguerreError(f"{field.name} is {value!r}; it is one of {', '.join(allowed)}.{nearest(str(value), allowed)}")
        self.validate()

    def validate(self) -> None:
        """Raise DaguerreError for settings that mean nothing."""

    def parameters(self) -> dict[str, object]:
        """Its settings as other programs name them in the text inside a picture."""
        return {}

    @property
    def input_images(self) -> dict[str, InputImage]:
        """Its pictures, by the name of their field."""
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), InputImage)}

    def with_input_images(self, pictures: Mapping[str, InputImage]) -> Self:
        """The same task with other pictures in these fields."""
        return replace(self, **pictures)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `task_from_json` gives it back, its pictures not opened."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"name": self.name, **{name: value.to_json() if isinstance(value, InputImage) else value for name, value in values.items()}}


@dataclass(frozen=True)
class TextToImage(Task):
    """From noise, by words alone."""

    name: ClassVar[str] = "txt2img"
    kinds: ClassVar[tuple[str, ...]] = ("text-to-image", VQ_PRIOR)


@dataclass(frozen=True)
class Hires(Task):
    """Make the request's pictures, enlarge them, and draw them again at that size from partial noise.

    scale: how much larger both sides become, above 1 up to 8.
    strength: how much is drawn anew at the larger size, 0 to 1; see `ImageToImage`.
    through: what is enlarged, "pixels" (decoded, Lanczos, encoded: sharper) or "latents" (bilinear: cheaper, and needs a strength of 0.5
        and more to be sharp).
    """

    scale: float = 2.0
    strength: float = 0.55
    upscaler: HiresUpscaler = "pixels"
    name: ClassVar[str] = "hires"

    def validate(self) -> None:
        check_strength(self.strength)
        if not 1 < self.scale <= 8:
            raise DaguerreError(f"The scale of a hires fix is {self.scale:g}; it is above 1 and up to 8, such as 2.")

    def parameters(self) -> dict[str, object]:
        upscaler = "Lanczos" if self.upscaler == "lanczos" else "Latent"
        return {"Denoising strength": f"{self.strength:g}", "Hires upscale": f"{self.scale:g}", "Hires upscaler": upscaler}


@dataclass(frozen=True)
class ImageToImage(Task):
    """A picture drawn over: noise is added to it, as much as strength says, and taken away again by the words (SDEdit: Meng et al. 2021,
    arXiv:2108.01073).

    strength: the share of the steps that is walked. 0 gives the picture as the autoencoder keeps it, 1 what the words give without it.
    fit: how it takes the shape of the wanted size: its middle ("crop"), all of it with its edges drawn out ("pad"), or "stretch".
    latent: the "mean" of what the autoencoder encodes, or a "sample", as diffusers has it.
    """

    image: InputImage
    strength: float = 0.6
    resize_mode: ResizeMode = "crop"
    latent: PosteriorMode = "mean"
    name: ClassVar[str] = "img2img"

    def validate(self) -> None:
        check_strength(self.strength)

    def parameters(self) -> dict[str, object]:
        return {"Denoising strength": f"{self.strength:g}"}


@dataclass(frozen=True)
class Inpaint(Task):
    """What is masked drawn anew, at the size of the picture; every byte outside the mask stays as it is.

    mask: white is drawn anew and black is kept, grey is a blend; of the picture's shape. Of a mask that is partly transparent the
        transparent part is drawn anew. None is the transparent part of the picture itself.
    strength: as in `ImageToImage`, for the masked part.
    feather: over how many pixels, from the mask's border inwards, old and new are blended; None is the autoencoder's downsampling.
    latent: as in `ImageToImage`.
    """

    image: InputImage
    mask: InputImage | None = None
    strength: float = 1.0
    mask_blur: int | None = None
    latent: PosteriorMode = "mean"
    name: ClassVar[str] = "inpaint"
    kinds: ClassVar[tuple[str, ...]] = ("text-to-image", "inpainting")

    def validate(self) -> None:
        check_strength(self.strength)
        check_mask_blur(self.mask_blur)

    def parameters(self) -> dict[str, object]:
        return {"Denoising strength": f"{self.strength:g}", **({} if self.mask_blur is None else {"Mask blur": self.mask_blur})}


@dataclass(frozen=True)
class Outpaint(Task):
    """A picture continued beyond its edges by so many pixels; every byte of the picture stays as it is.

    feather: as in `Inpaint`, from the picture's edges outwards.
    strength: as in `Inpaint`, over the edges drawn out; None is 1 for models that were trained to fill in and 0.8 for others, which at 1
        put the words' things into the margins once more.
    """

    image: InputImage
    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    mask_blur: int | None = None
    strength: float | None = None
    name: ClassVar[str] = "outpaint"
    kinds: ClassVar[tuple[str, ...]] = ("text-to-image", "inpainting")

    def validate(self) -> None:
        check_mask_blur(self.mask_blur)
        if self.strength is not None:
            check_strength(self.strength)
        if min(self.margins) < 0 or not any(self.margins):
            raise DaguerreError(f"Left, top, right and bottom are {self.margins} pixels; none is below 0, and one at least is above.")

    @property
    def margins(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.right, self.bottom


@dataclass(frozen=True)
class Completion(Task):
    """A picture whose lower rows a prior over codes draws anew, given those above (Esser et al. 2021, arXiv:2012.09841, figure 4).

    keep: the share of its rows that stays, above 0 and below 1. fit: as in `ImageToImage`.
    map: of the whole picture, for a prior that is told by maps; of the picture's size.
    """

    image: InputImage
    keep: float = 0.5
    resize_mode: ResizeMode = "crop"
    map: InputImage | None = None
    name: ClassVar[str] = "complete"
    kinds: ClassVar[tuple[str, ...]] = (VQ_PRIOR,)

    def validate(self) -> None:
        if not isinstance(self.keep, int | float) or not 0 < self.keep < 1:
            raise DaguerreError(f"keep is {self.keep!r}; it lies between 0 and 1, such as 0.5 for the upper half.")


@dataclass(frozen=True)
class MapToImage(Task):
    """A picture by its map: what is where, edges, or the picture in small, as the model was trained. The picture is the map.

    A latent diffusion model of semantic synthesis takes a map whose grey values are numbers of classes.
    """

    image: InputImage
    name: ClassVar[str] = "from-map"
    kinds: ClassVar[tuple[str, ...]] = (VQ_PRIOR, "semantic")


@dataclass(frozen=True)
class InstructPix2Pix(Task):
    """A picture changed as the prompt, an instruction, says ("make it winter").

    picture_guidance: how much the picture weighs, the scale s_I beside the request's guidance s_T; 1 is not more than the model learned.
    fit: as in `ImageToImage`.
    """

    image: InputImage
    image_guidance_scale: float = 1.5
    resize_mode: ResizeMode = "crop"
    name: ClassVar[str] = "pix2pix"
    kinds: ClassVar[tuple[str, ...]] = ("instruct-pix2pix",)

    def validate(self) -> None:
        if not isinstance(self.image_guidance_scale, int | float) or not 0 <= self.image_guidance_scale <= 100:
            raise DaguerreError(f"picture_guidance is {self.image_guidance_scale!r}; it is a number from 0 to 100, such as 1.5.")

    def parameters(self) -> dict[str, object]:
        return {"Image CFG scale": f"{self.image_guidance_scale:g}"}


@dataclass(frozen=True)
class DepthToImage(Task):
    """A picture by the depth of its places, and by another picture's colours where one is given.

    depth: a grey map, brighter where things are nearer, 8 or 16 bits or floats in any unit (`Image` of mode "F"); of the picture's shape.
    picture: what is drawn over, as far as strength says; None begins with noise alone.
    strength, latent: as in `ImageToImage`.
    """

    depth: InputImage
    image: InputImage | None = None
    strength: float = 0.8
    latent: PosteriorMode = "mean"
    name: ClassVar[str] = "depth2img"
    kinds: ClassVar[tuple[str, ...]] = ("depth",)

    def validate(self) -> None:
        check_strength(self.strength)

    def parameters(self) -> dict[str, object]:
        return {} if self.image is None else {"Denoising strength": f"{self.strength:g}"}


@dataclass(frozen=True)
class Upscale(Task):
    """A picture with four times the sides, its details drawn anew by the words.

    noise: how much the small picture is noised before the model sees it, 0 to 350 steps of 1000: more invents more. Latent diffusion's own
        super-resolution, which hears no words, sees it as it is.
    """

    image: InputImage
    noise: int = 20
    name: ClassVar[str] = "upscale"
    kinds: ClassVar[tuple[str, ...]] = ("upscaling",)

    def validate(self) -> None:
        if not isinstance(self.noise, int) or not 0 <= self.noise <= MAX_NOISE_LEVEL:
            raise DaguerreError(
                f"noise is {self.noise!r}; it is a whole number from 0 to {MAX_NOISE_LEVEL}, the most that the model learned."
            )


@dataclass(frozen=True)
class ImageVariation(Task):
    """Pictures that mean what another means, told by its CLIP embedding; the model hears no words, and colours and places are its own.

    picture: its middle square is looked at.
    """

    image: InputImage
    name: ClassVar[str] = "variations"
    kinds: ClassVar[tuple[str, ...]] = ("image-variation",)


TASKS: Mapping[str, type[Task]] = {
    task.name: task
    for task in (
        TextToImage,
        Hires,
        ImageToImage,
        Inpaint,
        Outpaint,
        InstructPix2Pix,
        DepthToImage,
        Upscale,
        ImageVariation,
        Completion,
        MapToImage,
    )
}
GIVEN = ("image", "mask", "depth", "map")  # the fields that hold a picture


def task_from_json(value: Mapping[str, Any]) -> Task:
    """Read what `Task.to_json` wrote, or a part of it.

    Raises:
        DaguerreError: there is no such task, it has no such field, or a picture of it is missing.
    """
    name = str(value.get("name"))
    if name not in TASKS:
        raise DaguerreError(f"There is no task {name!r}; there are {', '.join(TASKS)}.{nearest(name, TASKS)}")
    kind = TASKS[name]
    known = [field.name for field in fields(kind)]
    found = {}
    for field, content in value.items():
        if field == "name":
            continue
        if field not in known:
            raise DaguerreError(f"The task {name} has no field {field!r}; it has {', '.join(known) or 'none'}.{nearest(field, known)}")
        found[field] = InputImage.from_json(content) if field in GIVEN and isinstance(content, Mapping) else content
    try:
        return kind(**found)
    except TypeError as error:
        raise DaguerreError(f"The task {name} lacks something: {error}.") from error


def check_strength(strength: object) -> None:
    """Raise DaguerreError for what is no share."""
    if not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise DaguerreError(f"strength is {strength!r}; it is between 0 (the picture as it is) and 1 (nothing of it).")


def check_mask_blur(feather: object) -> None:
    """Raise DaguerreError for what is no width in pixels."""
    if feather is not None and (not isinstance(feather, int) or feather < 0):
        raise DaguerreError(f"feather is {feather!r}; it is a number of pixels, 0 (a hard edge) or more.")
