"""`daguerre pix2pix IMAGE INSTRUCTION…`: edit images by an instruction, with an InstructPix2Pix model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daguerre.cli.batch import run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, NegativePrompt, Prompts, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import InstructPix2Pix, ResizeMode


@dataclass(frozen=True)
class Pix2PixOptions(SizedGenerationOptions):
    """Edit an image by an instruction, such as "make it winter".

    This needs a model trained for it: --model timbrooks/instruct-pix2pix.
    """

    image: ImagePath
    """The image to edit, or a folder of images."""
    prompt: Prompts
    """The instruction; several instructions give one image each."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    image_guidance_scale: float = InstructPix2Pix.image_guidance_scale
    """Guidance scale of the image; higher keeps more of it, 1 disables it."""
    resize_mode: ResizeMode = InstructPix2Pix.resize_mode
    """How the image is brought to the output size: crop the centre, pad by repeating the edges, or stretch."""

    def request(self, image: Path) -> Request:
        """The request for one image."""
        task = InstructPix2Pix(read_input(image), self.image_guidance_scale, self.resize_mode)
        return self.request_for(self.prompt, task, self.negative_prompt)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(Pix2PixOptions, arguments, "pix2pix")
    run_batch(options, options.image, options.request, "pix2pix")
