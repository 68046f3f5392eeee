"""What a model with a condition makes of some images: the condition, the result and the original in one row each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from daguerre.conditioning.class_map_image import ConcatConditioner, ImageConditioner
from daguerre.data import Dataset
from daguerre.data.order import epoch_index
from daguerre.models.controlnet import ControlNetModel
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.pipelines.images.grid import image_table
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.tasks import Colorize, ImageVariation, Inpaint, LayoutToImage, MapToImage, Task, TextToImage, Upscale

EXAMPLES = 8  # of a sample sheet
EXAMPLE_STEPS = 20
BOX_COLOURS = ("red", "blue", "green", "orange", "purple")


@dataclass(frozen=True)
class ConditionExample:
    """An image, the task that should give it again, and the condition as an image. control_images: the maps of a ControlNet."""

    task: Task
    prompt: str
    shown: Image.Image
    original: Image.Image
    control_images: tuple[InputImage, ...] = ()

    def request(self, seed: int = 0, steps: int = EXAMPLE_STEPS) -> Request:
        """The request of the task."""
        return Request(self.prompt, task=self.task, seed=seed, steps=steps, control_images=self.control_images)


def find_examples(conditioner: object, source: Dataset, count: int = EXAMPLES, seed: int = 0) -> list[ConditionExample]:
    """`count` different images of a dataset in the order of a seed, or all. conditioner: of a model, or its ControlNet. source: the images
    as they were trained on.
    """
    chosen = [epoch_index(seed, position, len(source)) for position in range(min(count, len(source)))]
    samples = [source.sample(index, np.random.default_rng([seed, index])) for index in chosen]
    return [condition_example(conditioner, sample.image, sample.caption) for sample in samples]


def condition_example(conditioner: object, image: Image.Image, caption: str = "") -> ConditionExample:
    """The example of one sample: an image with its map or hole on the right, if the condition has one."""
    side = image.height
    original, second = image.crop((0, 0, side, side)), image.crop((side, 0, image.width, side)) if image.width > side else image
    if isinstance(conditioner, ControlNetModel):
        return ConditionExample(TextToImage(), caption, second, original, (InputImage.from_any(second),))
    if isinstance(conditioner, ImageConditioner):
        return ConditionExample(ImageVariation(original), "", original, original)  # type: ignore[arg-type]
    if not isinstance(conditioner, ConcatConditioner):
        return ConditionExample(LayoutToImage(), caption, draw_boxes(caption, side), original)
    match conditioner.kind:
        case "low-res":
            small = original.resize((side // conditioner.scale, side // conditioner.scale), Image.Resampling.BICUBIC)
            return ConditionExample(Upscale(small), "", small.resize(original.size, Image.Resampling.NEAREST), original)  # type: ignore[arg-type]
        case "masked":
            hole = second.convert("L")
            shown = original.copy()
            shown.paste("grey", (0, 0), hole)
            return ConditionExample(Inpaint(original, hole, mask_blur=0), "", shown, original)  # type: ignore[arg-type]
        case "grey":
            grey = original.convert("L").convert("RGB")
            return ConditionExample(Colorize(grey), "", grey, original)  # type: ignore[arg-type]
    return ConditionExample(MapToImage(second), "", second, original)  # type: ignore[arg-type]


def draw_boxes(layout: str, side: int) -> Image.Image:
    """The boxes of a layout, with the names of their classes."""
    image = Image.new("RGB", (side, side), "white")
    canvas = ImageDraw.Draw(image)
    for number, entry in enumerate(filter(None, layout.split("; "))):
        name, *box = entry.rsplit(maxsplit=4)
        left, top, right, bottom = (float(share) * (side - 1) for share in box)
        colour = BOX_COLOURS[number % len(BOX_COLOURS)]
        canvas.rectangle((left, top, right, bottom), outline=colour)
        canvas.text((left + 2, top + 1), name, colour)
    return image


def example_sheet(model: LatentDiffusion, examples: Sequence[ConditionExample]) -> Image.Image:
    """Each example in one row: condition, generated image, original."""
    rows = [[each.shown, generate(model, each.request())[0].image, each.original] for each in examples]
    return image_table(rows, columns=("condition", "generated", "original")).image
