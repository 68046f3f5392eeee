"""`daguerre img2img IMAGE PROMPT…`: change an image, or a folder of images, by a prompt; prints one path per line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daguerre.cli.batch import run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, NegativePrompt, Prompts, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import ImageToImage, PosteriorMode, ResizeMode


@dataclass(frozen=True)
class Img2ImgOptions(SizedGenerationOptions):
    """Change an image by a prompt: add noise to it, as much as --strength states, and denoise it."""

    image: ImagePath
    """The input image, or a folder of images."""
    prompt: Prompts
    """What the result shows; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    strength: float = ImageToImage.strength
    """Denoising strength: 0 keeps the image, 1 ignores it."""
    resize_mode: ResizeMode = ImageToImage.resize_mode
    """How the image is brought to the output size: crop the centre, pad by repeating the edges, or stretch."""
    latent: PosteriorMode = ImageToImage.latent
    """Latents of the image: the mean of the autoencoder's posterior, or a sample of it as in diffusers."""

    def request(self, image: Path) -> Request:
        """The request for one image."""
        task = ImageToImage(read_input(image), self.strength, self.resize_mode, self.latent)
        return self.request_for(self.prompt, task, self.negative_prompt)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(Img2ImgOptions, arguments, "img2img")
    run_batch(options, options.image, options.request, "img2img")
