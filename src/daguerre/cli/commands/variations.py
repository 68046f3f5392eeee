"""`daguerre variations IMAGE`: generate images similar to another one, with an image-variation model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daguerre.cli.batch import run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import ImageVariation


@dataclass(frozen=True)
class VariationsOptions(SizedGenerationOptions):
    """Generate images similar in content to another one.

    The model is conditioned on the image's CLIP embedding instead of a prompt, so this needs a model trained for it:
    --model lambdalabs/sd-image-variations-diffusers, or one of your own from `daguerre train ldm --condition clip-image`. For variations
    with any model, see --variation-seed of txt2img.
    """

    image: ImagePath
    """The input image, its centre square is used; or a folder of images."""

    def request(self, image: Path) -> Request:
        """The request for one image."""
        return self.request_for(("",), ImageVariation(read_input(image)))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(VariationsOptions, arguments, "variations")
    run_batch(options, options.image, options.request, "variation")
