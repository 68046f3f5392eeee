"""`daguerre upscale IMAGE [PROMPT]`: enlarge images, usually four times per side, with an upscaling model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import GenerationOptions, ImagePath, NegativePrompt
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Upscale


@dataclass(frozen=True)
class UpscaleOptions(GenerationOptions):
    """Enlarge an image, four times per side with most models.

    This needs a model trained for it: --model stabilityai/stable-diffusion-x4-upscaler, or one of your own from
    `daguerre train ldm --condition low-res`.
    """

    image: ImagePath
    """The image to enlarge, or a folder of images."""
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT", help_behavior_hint="")] = ()
    """What the image shows; optional."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    noise: int = Upscale.noise
    """Noise level added to the input, 0 to 350; more invents more detail and hides more artefacts."""

    def request(self, image: Path) -> Request:
        """The request for one image."""
        return self.request_for(self.prompt or ("",), Upscale(read_input(image), self.noise), self.negative_prompt)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(UpscaleOptions, arguments, "upscale")
    run_batch(options, options.image, options.request, "x4")
