"""`daguerre layout OBJECT …` and `daguerre layout --map MAP`: generate images from boxes or a segmentation map."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from daguerre.cli.generation import generate_and_save
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import OptionalFloat, OptionalPath, SamplingOptions, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.errors import DaguerreError
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import LayoutToImage, MapToImage


@dataclass(frozen=True, kw_only=True)
class LayoutSamplingOptions(SamplingOptions):
    """The same, without guidance by default."""

    guidance_scale: OptionalFloat = 1.0
    """Classifier-free guidance scale of the layout; 1 disables guidance."""


@dataclass(frozen=True)
class LayoutOptions(SizedGenerationOptions):
    """Generate images from a layout: boxes or a segmentation map.

    This needs a model trained for it: latent diffusion's layout-to-image for boxes; for a map its semantic synthesis, or a prior over codes
    conditioned on maps; or one of your own from `daguerre train ldm --condition layout` or `map`.
    """

    objects: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="OBJECT", help_behavior_hint="")] = ()
    """One text for each object, "CLASS LEFT TOP RIGHT BOTTOM": a class, by number or name, and a box in shares of the sides, 0 to 1."""
    map: OptionalPath = None
    """Map, such as a segmentation map whose grey values are class numbers, or edges, as the model was trained."""
    sampling: Annotated[LayoutSamplingOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")] = field(
        default_factory=LayoutSamplingOptions
    )

    def request(self) -> Request:
        """The request that these options describe. Raises DaguerreError for both objects and a map, or neither."""
        if bool(self.objects) == (self.map is not None):
            raise DaguerreError('A layout is given by objects such as "25 0.1 0.3 0.6 1" or by --map; give one of the two.')
        if self.map is not None:
            return self.request_for(("",), MapToImage(read_input(self.map)))
        return self.request_for(("; ".join(self.objects),), LayoutToImage())


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(LayoutOptions, arguments, "layout")
    generate_and_save(options, options.request)
