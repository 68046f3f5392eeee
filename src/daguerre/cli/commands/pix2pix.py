"""`daguerre pix2pix PICTURE INSTRUCTION…`: pictures changed as an instruction says, by a model that was trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import run_batch
from daguerre.cli.generation import GenerationOptions
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, Prompts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import InstructPix2Pix, ResizeMode


@dataclass(frozen=True)
class Pix2PixOptions(GenerationOptions):
    """Change a picture as an instruction says, such as "make it winter".

    The model is shown the picture at every step, so it must have been trained for that: name an instruct-pix2pix checkpoint with --model.
    """

    image: ImagePath
    """What to change, or a folder of such pictures."""
    prompt: Prompts
    """The instruction; of several each makes its own picture."""
    image_guidance_scale: float = InstructPix2Pix.image_guidance_scale
    """How much the picture weighs: higher keeps more of it, 1 is not more than the model learned."""
    resize_mode: ResizeMode = InstructPix2Pix.resize_mode
    """How the picture takes the shape of --size: its middle, all of it with its edges drawn out, or stretched."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        return self.request_for(self.prompt, InstructPix2Pix(read_input(picture), self.image_guidance_scale, self.resize_mode))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Pix2PixOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre pix2pix")
    run_batch(options, options.image, options.request, "pix2pix")
