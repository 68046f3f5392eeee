"""`daguerre variations PICTURE`: pictures that mean what another one means, by a model that was trained for it."""

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
from daguerre.pipelines.tasks import ImageVariation as Task


@dataclass(frozen=True)
class VariationsOptions(GenerationOptions):
    """Make pictures that mean what another one means.

    The model is told the picture by CLIP in the place of words, so it must have been trained for that: name Stable Diffusion image
    variations with --model. With another model, see --variation of txt2img, which moves the noise instead.
    """

    image: ImagePath
    """The picture, whose middle square is looked at, or a folder of pictures."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        return self.request_for(("",), Task(read_input(picture)))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[VariationsOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre variations")
    run_batch(options, options.image, options.request, "variation")
