"""`daguerre inpaint PICTURE MASK PROMPT…`: the masked part of pictures drawn anew; prints a path a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import matching_file, run_batch
from daguerre.cli.generation import GenerationOptions
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, OptionalNumber, Prompts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Inpaint as Task
from daguerre.pipelines.tasks import PosteriorMode

ALPHA = Path("alpha")  # in place of a mask's file: the transparent part of the picture itself


@dataclass(frozen=True)
class InpaintOptions(GenerationOptions):
    """Draw the masked part of a picture anew. The result has the picture's size, and outside the mask every pixel stays as it is.

    Write .png or .webp; a .jpg changes pixels everywhere.
    """

    image: ImagePath
    """The picture, or a folder of pictures."""
    mask: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MASK")]
    """Its mask: white is drawn anew, black is kept, grey is a blend; or a folder with a mask of each picture's name. Or "alpha": what is
    transparent in the picture is drawn anew."""
    prompt: Prompts
    """What the picture shall show; quote each prompt."""
    strength: float = Task.strength
    """How much is drawn anew inside the mask: 0 is what was there, 1 is nothing of it."""
    mask_blur: OptionalNumber = Task.mask_blur
    """Over how many pixels inside the mask old and new are blended; if not given one place of the latents, 8 for Stable Diffusion."""
    latent: PosteriorMode = Task.latent
    """What of the autoencoder's encoding is taken: its mean, or a sample as other programs take it."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        mask = None if self.mask == ALPHA and not ALPHA.exists() else read_input(matching_file(picture, self.mask, "mask"))
        return self.request_for(self.prompt, Task(read_input(picture), mask, self.strength, self.mask_blur, self.latent))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[InpaintOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre inpaint")
    run_batch(options, options.image, options.request, "inpaint")
