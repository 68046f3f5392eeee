"""`daguerre colorize IMAGE`: add colours to grey images, with a model trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daguerre.cli.batch import run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Colorize, ResizeMode


@dataclass(frozen=True)
class ColorizeOptions(SizedGenerationOptions):
    """Add colours to a grey image; its brightness and its size stay as they are.

    This needs a model trained for it: see `daguerre train ldm --condition grey`.
    """

    image: ImagePath
    """The grey image, or a folder of images; colours that they have are ignored."""
    resize_mode: ResizeMode = Colorize.resize_mode
    """With --size, how the image is brought to it: crop the centre, pad by repeating the edges, or stretch."""

    def request(self, image: Path) -> Request:
        """The request for one image."""
        return self.request_for(("",), Colorize(read_input(image), self.resize_mode))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(ColorizeOptions, arguments, "colorize")
    run_batch(options, options.image, options.request, "coloured")
