"""`daguerre depth2img MAP PROMPT…`: pictures by the depth of their places, by a model that was trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import matching_file, run_batch
from daguerre.cli.generation import GenerationOptions
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import OptionalPath, Prompts
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import DepthToImage


@dataclass(frozen=True)
class Depth2ImgOptions(GenerationOptions):
    """Make pictures whose places are as near and as far as a map says.

    The model is shown the map at every step, so it must have been trained for that: name Stable Diffusion 2 depth with --model.
    """

    depth: tyro.conf.Positional[Path]
    """The map: grey, brighter where things are nearer, of 8 or 16 bits; or a folder of maps."""
    prompt: Prompts
    """What to draw; quote each prompt."""
    image: OptionalPath = None
    """A picture to draw over, of the map's shape, or a folder with a picture of each map's name; noise alone if not given."""
    strength: float = DepthToImage.strength
    """With --picture, how much is drawn anew, 0 to 1."""

    def request(self, depth: Path) -> Request:
        """The request that these options are, for one map."""
        picture = None if self.image is None else read_input(matching_file(depth, self.image, "picture"))
        return self.request_for(self.prompt, DepthToImage(read_input(depth), picture, self.strength))


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = tyro.cli(Annotated[Depth2ImgOptions, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre depth2img")
    run_batch(options, options.depth, options.request, "depth2img")
