"""`daguerre depth2img DEPTH PROMPT…`: generate images that follow a depth map, with a depth model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import matching_file, run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import NegativePrompt, OptionalPath, Prompts, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import DepthToImage


@dataclass(frozen=True)
class Depth2ImgOptions(SizedGenerationOptions):
    """Generate images that follow a depth map.

    This needs a model trained for it: --model stabilityai/stable-diffusion-2-depth.
    """

    depth: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEPTH")]
    """The depth map: grey, brighter is nearer, 8 or 16 bits; or a folder of depth maps."""
    prompt: Prompts
    """What the image shows; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    image: OptionalPath = None
    """Image to start from, in the shape of the map; or a folder with an image of each map's name. Default: noise alone."""
    strength: float = DepthToImage.strength
    """Denoising strength of --image: 0 keeps the image, 1 ignores it."""

    def request(self, depth: Path) -> Request:
        """The request for one depth map."""
        image = None if self.image is None else read_input(matching_file(depth, self.image, "image"))
        return self.request_for(self.prompt, DepthToImage(read_input(depth), image, self.strength), self.negative_prompt)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(Depth2ImgOptions, arguments, "depth2img")
    run_batch(options, options.depth, options.request, "depth2img")
