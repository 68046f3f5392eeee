"""`daguerre outpaint PICTURE PROMPT…`: pictures continued beyond their edges; prints a path a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import run_batch
from daguerre.cli.generation import GenerationOptions
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, OptionalFloat, OptionalNumber, Prompts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Outpaint as Task


@dataclass(frozen=True)
class OutpaintOptions(GenerationOptions):
    """Continue a picture beyond its edges. It stands in the result as it is, pixel by pixel, if that is a .png or .webp."""

    image: ImagePath
    """The picture, or a folder of pictures."""
    prompt: Prompts
    """What the whole shall show; quote each prompt."""
    left: int = Task.left
    """Pixels to add at the left edge."""
    top: int = Task.top
    """Pixels to add at the top."""
    right: int = Task.right
    """Pixels to add at the right edge."""
    bottom: int = Task.bottom
    """Pixels to add at the bottom."""
    mask_blur: OptionalNumber = Task.mask_blur
    """Over how many of the new pixels the drawn-out edge goes over into what is drawn; if not given one place of the latents."""
    strength: OptionalFloat = Task.strength
    """How much of the noise the margins begin from, 0 to 1; if not given 1 for a model trained to fill in, else 0.8."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        margins = self.left, self.top, self.right, self.bottom
        return self.request_for(self.prompt, Task(read_input(picture), *margins, self.mask_blur, self.strength))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[OutpaintOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre outpaint")
    run_batch(options, options.image, options.request, "outpaint")
