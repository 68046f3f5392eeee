"""`daguerre img2img PICTURE PROMPT…`: pictures drawn over by words, one or a whole folder of them; prints a path a line."""

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
from daguerre.pipelines.tasks import ImageToImage, PosteriorMode, ResizeMode


@dataclass(frozen=True)
class Img2ImgOptions(GenerationOptions):
    """Draw over a picture: noise is added to it, as much as --strength says, and taken away by the words."""

    image: ImagePath
    """The picture, or a folder of pictures."""
    prompt: Prompts
    """What it shall become; quote each prompt."""
    strength: float = ImageToImage.strength
    """How much is drawn anew: 0 is the picture as the autoencoder keeps it, 1 is nothing of it."""
    resize_mode: ResizeMode = ImageToImage.resize_mode
    """How the picture takes the shape of --size: its middle, all of it with its edges drawn out, or stretched."""
    latent: PosteriorMode = ImageToImage.latent
    """What of the autoencoder's encoding is taken: its mean, or a sample as other programs take it."""

    def request(self, picture: Path) -> Request:
        """The request that these options are, for one picture."""
        return self.request_for(self.prompt, ImageToImage(read_input(picture), self.strength, self.resize_mode, self.latent))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Img2ImgOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre img2img")
    run_batch(options, options.image, options.request, "img2img")
