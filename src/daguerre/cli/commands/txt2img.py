"""`daguerre txt2img PROMPT…`: generate images from text; prints one path per line."""

from collections.abc import Sequence
from dataclasses import dataclass

from daguerre.cli.generation import generate_and_save
from daguerre.cli.options import NegativePrompt, OptionalFloat, Prompts, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Hires, HiresUpscaler, TextToImage


@dataclass(frozen=True)
class Txt2ImgOptions(SizedGenerationOptions):
    """Generate images from text.

    Several prompts also give a labelled grid. The paths of the written files are printed, one per line.
    """

    prompt: Prompts
    """What the image shows; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    hires_scale: OptionalFloat = None
    """Enlarge the image by this factor and refine it with img2img at that size (hires fix)."""
    hires_strength: float = Hires.strength
    """Denoising strength at the larger size, 0 to 1."""
    hires_upscaler: HiresUpscaler = Hires.upscaler
    """What is enlarged: lanczos enlarges pixels (sharper), latent enlarges latents (cheaper)."""

    def request(self) -> Request:
        """The request that these options describe."""
        task = TextToImage() if self.hires_scale is None else Hires(self.hires_scale, self.hires_strength, self.hires_upscaler)
        return self.request_for(self.prompt, task, self.negative_prompt)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(Txt2ImgOptions, arguments, "txt2img")
    generate_and_save(options, options.request)
