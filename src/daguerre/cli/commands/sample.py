"""`daguerre sample FOLDER`: pictures drawn code by code, told by nothing, a class, a text or a map, or going on from a given picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from PIL import Image

from daguerre.cli.generation import check_outputs, generate_with_progress
from daguerre.cli.image_inputs import read_input
from daguerre.cli.model_loading import open_any
from daguerre.cli.options import Dtype, OptionalNumber, OptionalPath, OptionalText, parse_size, slug
from daguerre.data.images import flatten_alpha
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.images.output import GeneratedImages, write_image
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Completion, MapToImage, Task, TextToImage
from daguerre.progress import spinner
from daguerre.weights.catalog import find

if TYPE_CHECKING:
    from daguerre.models.latent_prior import LatentPrior


@dataclass(frozen=True)
class SampleOptions:
    """Draw pictures from a prior over codes, as `daguerre train prior` writes it.

    Several pictures make a labelled grid beside them. The paths of what was written are printed, one a line.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The prior's folder, or a published VQGAN's file with its transformer."""
    class_: Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME", help_behavior_hint="")] = None
    """What class to draw, of a prior that is told classes."""
    prompt: OptionalText = None
    """What to draw, of a prior that is told by texts; of one that is told by boxes "CLASS LEFT TOP RIGHT BOTTOM; …"."""
    map: OptionalPath = None
    """A map of what is to be drawn, of a prior that is told by maps; in its pixels' size unless --size says another."""
    complete: OptionalPath = None
    """A picture whose lower part is drawn anew, each time otherwise; of a prior that is told by maps, with the --map of the whole."""
    keep: float = 0.5
    """With --complete, the share of its rows that stays."""
    temperature: float = Request.temperature
    """Under 1 tamer, over 1 wilder than it learned; 0 always takes the likeliest code."""
    top_k: OptionalNumber = Request.top_k
    """Draw each code from the so many likeliest alone."""
    top_p: float = Request.top_p
    """Draw each code from the fewest likeliest that hold this share of the probability."""
    size: OptionalText = None
    """In pixels, one side (64) or WIDTHxHEIGHT (128x64); the prior's own if not given. Beyond it a window slides over the picture."""
    num_images: int = Request.num_images
    """How many pictures."""
    seed: int = Request.seed
    """Of the first picture's randomness; the next ones count on from it."""
    out: OptionalPath = None
    """Where to write: .png, .webp or .jpg. Several pictures get -1, -2, … after the name, the grid the name itself."""
    device: OptionalText = None
    """cpu or cuda; cuda where there is one if not given."""
    dtype: Dtype = "auto"
    """What the networks compute in; auto is what is fastest here."""

    def request(self) -> Request:
        """The request that these options are. Raises DaguerreError for options that do not go together, and for unreadable pictures."""
        if self.class_ is not None and self.prompt is not None:
            raise DaguerreError("--class and --prompt are two ways to say what to draw; give one of them.")
        width, height = parse_size(self.size)
        fields = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "num_images", "seed")}
        prompt = self.class_ if self.class_ is not None else self.prompt or ""
        return Request(prompt=prompt, width=width, height=height, task=self._task(), **fields)

    def _task(self) -> Task:
        map = None if self.map is None else read_input(self.map)
        if self.complete is not None:
            return Completion(read_input(self.complete), self.keep, map=map)
        return TextToImage() if map is None else MapToImage(map)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(tyro.cli(Annotated[SampleOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre sample"))


def run(options: SampleOptions) -> None:
    """Draw the pictures and print where they are; what can be wrong with the options is told before the work begins."""
    find(options.model)
    request = options.request()
    out = options.out or Path(f"{slug(request.prompts[0] or Path(options.model).resolve().name)}-{request.seed}.png")
    check_outputs({"--out": out}, request)
    with spinner("opening the model"):
        model = open_prior(options)

    pictures = generate_with_progress(model, request)
    written = pictures.save(out)
    if len(pictures) > 1 or request.task.input_images:
        sheet = out if len(pictures) > 1 else out.with_stem(f"{out.stem}-grid")
        write_image(sheet, grid_with_inputs(request, pictures))
        written.append(sheet)
    for path in written:
        print(path)


def grid_with_inputs(request: Request, pictures: GeneratedImages) -> Image.Image:
    """All pictures on one sheet, each over its seed; before them what was given, at their size."""
    size = pictures[0].image.size
    given = {name: flatten_alpha(picture.pixels).resize(size) for name, picture in request.task.input_images.items()}
    names = ["map" if name == "map" or isinstance(request.task, MapToImage) else "given" for name in given]
    labels = [f"{prompt} · {seed}" if prompt else f"seed {seed}" for prompt, seed in request.items]
    return labelled_grid([*given.values(), *(picture.image for picture in pictures)], [*names, *labels])


def open_prior(options: SampleOptions) -> "LatentPrior":
    """The prior that the options name. Raises DaguerreError where there is none."""
    model = open_any(options.model, None, options.device, options.dtype, offline=True)
    from daguerre.models.latent_prior import LatentPrior

    if not isinstance(model, LatentPrior):
        raise DaguerreError(
            f"'{options.model}' is a diffusion model, not a prior over codes; `daguerre txt2img --model {options.model}` draws from it."
        )
    return model
