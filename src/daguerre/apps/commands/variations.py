"""`daguerre variations PICTURE`: pictures that mean what another one means, by a model that was trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.apps.inputs import read_given
from daguerre.apps.making import Making, make
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Variations as Task


@dataclass(frozen=True)
class Variations(Making):
    """Make pictures that mean what another one means.

    The model is told the picture by CLIP in the place of words, so it must have been trained for that: name Stable Diffusion image
    variations with --model. With another model, see --variation of txt2img, which moves the noise instead.
    """

    picture: tyro.conf.Positional[Path]
    """The picture; its middle square is looked at."""

    def request(self) -> Request:
        """The request that these options are."""
        return self.request_for(("",), Task(read_given(self.picture)))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Variations, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre variations")
    make(replace(options, out=options.out or Path(f"{options.picture.stem}-variation.png")), options.request())
