"""`daguerre outpaint IMAGE PROMPT…`: extend images beyond their edges; prints one path per line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daguerre.cli.batch import run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, NegativePrompt, OptionalFloat, OptionalInt, Prompts, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Outpaint


@dataclass(frozen=True)
class OutpaintOptions(SizedGenerationOptions):
    """Extend an image beyond its edges. Its own pixels do not change if the result is a .png or .webp."""

    image: ImagePath
    """The input image, or a folder of images."""
    prompt: Prompts
    """What the whole result shows; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    left: int = Outpaint.left
    """Pixels to add on the left."""
    top: int = Outpaint.top
    """Pixels to add at the top."""
    right: int = Outpaint.right
    """Pixels to add on the right."""
    bottom: int = Outpaint.bottom
    """Pixels to add at the bottom."""
    mask_blur: OptionalInt = Outpaint.mask_blur
    """Width in pixels, in the new area, of the blend between the repeated edge and the generated image. Default: one latent pixel."""
    strength: OptionalFloat = Outpaint.strength
    """Denoising strength in the new area, 0 to 1. Default: 1 for inpainting models, 0.8 for others."""

    def request(self, image: Path) -> Request:
        """The request for one image."""
        task = Outpaint(read_input(image), self.left, self.top, self.right, self.bottom, self.mask_blur, self.strength)
        return self.request_for(self.prompt, task, self.negative_prompt)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(OutpaintOptions, arguments, "outpaint")
    run_batch(options, options.image, options.request, "outpaint")
