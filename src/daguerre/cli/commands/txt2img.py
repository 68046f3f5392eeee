"""`daguerre txt2img PROMPT…`: words in, picture files out; prints a path a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from daguerre.cli.generation import GenerationOptions, generate_and_save
from daguerre.cli.options import Prompts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Hires, HiresUpscaler, TextToImage


@dataclass(frozen=True)
class Txt2ImgOptions(GenerationOptions):
    """Make pictures from words.

    Several prompts make a labelled grid beside the pictures. The paths of what was written are printed, one a line.
    """

    prompt: Prompts
    """What to draw; quote each prompt."""
    hires_scale: Annotated[float | None, tyro.conf.arg(metavar="SCALE", help_behavior_hint="")] = None
    """Enlarge the pictures so many times and draw them again at that size."""
    hires_strength: float = Hires.strength
    """How much is drawn anew at the larger size, 0 to 1."""
    hires_upscaler: HiresUpscaler = Hires.upscaler
    """What is enlarged: pixels are sharper, latents cheaper."""

    def request(self) -> Request:
        """The request that these options are."""
        task = TextToImage() if self.hires_scale is None else Hires(self.hires_scale, self.hires_strength, self.hires_upscaler)
        return self.request_for(self.prompt, task)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Txt2ImgOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre txt2img")
    generate_and_save(options, options.request())
