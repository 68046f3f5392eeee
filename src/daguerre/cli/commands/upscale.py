"""`daguerre upscale PICTURE [PROMPT]`: pictures with four times the sides, by a model that was trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import run_batch
from daguerre.cli.generation import GenerationOptions
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Upscale as Upscaling


@dataclass(frozen=True)
class UpscaleOptions(GenerationOptions):
    """Draw a picture again with four times its sides.

    The model is shown the small picture at every step, so it must have been trained for that: name the Stable Diffusion x4 upscaler with
    --model.
    """

    image: ImagePath
    """What to enlarge, or a folder of such pictures."""
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT", help_behavior_hint="")] = ()
    """What is to be seen in it; may be left out."""
    noise: int = Upscaling.noise
    """How much noise the model sees the picture under, 0 to 350: more invents more, and forgives a bad picture more."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        return self.request_for(self.prompt or ("",), Upscaling(read_input(picture), self.noise))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[UpscaleOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre upscale")
    run_batch(options, options.image, options.request, "x4")
