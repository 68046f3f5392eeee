"""`daguerre layout OBJECT … --model M` and `daguerre layout --map MAP --model M`: pictures with given things in given places."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from daguerre.cli.generation import GenerationOptions, generate_and_save
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import OptionalPath
from daguerre.errors import DaguerreError
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import MapToImage


@dataclass(frozen=True)
class LayoutOptions(GenerationOptions):
    """Draw pictures in which it is said what stands where, by boxes or by a map.

    The model must have been trained for that: boxes are for latent diffusion's layout-to-image, a map is for its semantic synthesis or for
    a prior over codes that is told by maps.
    """

    objects: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="OBJECT", help_behavior_hint="")] = ()
    """"CLASS LEFT TOP RIGHT BOTTOM", each: the number of a class, and the box in shares of the sides from 0 to 1."""
    map: OptionalPath = None
    """A picture of what is where, such as grey values that are numbers of classes."""
    guidance_scale: float = 1.0
    """How much the layout weighs; 1 is not at all more than the model learned."""

    def request(self) -> Request:
        """The request that these options are. Raises DaguerreError where there are objects and a map, or neither."""
        if bool(self.objects) == (self.map is not None):
            raise DaguerreError('Say what stands where, by objects such as "25 0.1 0.3 0.6 1" or by --map, one of the two.')
        if self.map is not None:
            return self.request_for(("",), MapToImage(read_input(self.map)))
        return self.request_for(("; ".join(self.objects),))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[LayoutOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre layout")
    generate_and_save(options, options.request())
