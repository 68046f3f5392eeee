"""`daguerre pix2pix PICTURE INSTRUCTION…`: pictures changed as an instruction says, by a model that was trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import make_each
from daguerre.cli.generation import Making
from daguerre.cli.image_inputs import read_given
from daguerre.cli.options import PictureFile, Prompts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Fit, InstructPix2Pix


@dataclass(frozen=True)
class Pix2Pix(Making):
    """Change a picture as an instruction says, such as "make it winter".

    The model is shown the picture at every step, so it must have been trained for that: name an instruct-pix2pix checkpoint with --model.
    """

    picture: PictureFile
    """What to change, or a folder of such pictures."""
    prompt: Prompts
    """The instruction; of several each makes its own picture."""
    picture_guidance: float = InstructPix2Pix.picture_guidance
    """How much the picture weighs: higher keeps more of it, 1 is not more than the model learned."""
    fit: Fit = InstructPix2Pix.fit
    """How the picture takes the shape of --size: its middle, all of it with its edges drawn out, or stretched."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        return self.request_for(self.prompt, InstructPix2Pix(read_given(picture), self.picture_guidance, self.fit))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Pix2Pix, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre pix2pix")
    make_each(options, options.picture, options.request, "pix2pix")
