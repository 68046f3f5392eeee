"""`daguerre inpaint IMAGE MASK PROMPT…`: regenerate the masked part of images; prints one path per line."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.cli.batch import matching_file, run_batch
from daguerre.cli.image_inputs import read_input
from daguerre.cli.options import ImagePath, NegativePrompt, OptionalInt, Prompts, SizedGenerationOptions
from daguerre.cli.parsing import parse_options
from daguerre.errors import DaguerreError
from daguerre.pipelines.request import Request
from daguerre.pipelines.tasks import Inpaint, PosteriorMode

MAX_USUAL_SHARE = 0.6  # of an image in a mask; above it the mask may be inverted
ALPHA = Path("alpha")  # instead of a mask file: the transparent part of the image


@dataclass(frozen=True)
class InpaintOptions(SizedGenerationOptions):
    """Regenerate the masked part of an image. The result has the size of the image, and no pixel outside the mask changes.

    Write .png or .webp; .jpg changes pixels everywhere.
    """

    image: ImagePath
    """The input image, or a folder of images."""
    mask: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MASK")]
    """The mask: white is regenerated, black is kept, grey blends. Or a folder with a mask of each image's name; or "alpha": the transparent
    part of the image is regenerated."""
    prompt: Prompts
    """What the result shows; quote each prompt."""
    negative_prompt: NegativePrompt = Request.negative_prompt
    strength: float = Inpaint.strength
    """Denoising strength inside the mask: 0 keeps the image, 1 ignores it."""
    mask_blur: OptionalInt = Inpaint.mask_blur
    """Width in pixels of the blend inside the border of the mask. Default: one latent pixel, 8 for Stable Diffusion."""
    crop_padding: OptionalInt = Inpaint.crop_padding
    """Process only the masked part with so many pixels around it, at the size of --size: all detail for a small part of a large image.
    Default: the whole image."""
    latent: PosteriorMode = Inpaint.latent
    """Latents of the image: the mean of the autoencoder's posterior, or a sample of it as in diffusers."""

    def request(self, image: Path) -> Request:
        """The request for one image."""
        mask = None if self.mask == ALPHA and not ALPHA.exists() else read_input(matching_file(image, self.mask, "mask"))
        task = Inpaint(read_input(image), mask, self.strength, self.mask_blur, self.latent, self.crop_padding)
        _note_mask(task)
        return self.request_for(self.prompt, task, self.negative_prompt)


def _note_mask(task: Inpaint) -> None:
    """Print how a mask is read if other programs may mean the opposite by it. A mask that cannot be used raises later."""
    from daguerre.pipelines.images.preprocess import prepare_mask

    with suppress(DaguerreError):
        histogram = prepare_mask(task.image, task.mask).histogram()
        share = sum(histogram[128:]) / sum(histogram)
        transparent = (task.mask or task.image).has_alpha
        if share > MAX_USUAL_SHARE or (transparent and task.mask):
            print(
                f"daguerre: {share:.0%} of the image is regenerated: what is {'transparent' if transparent else 'white'} in the mask. If "
                "that should be kept instead, invert the mask.",
                file=sys.stderr,
            )


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse_options(InpaintOptions, arguments, "inpaint")
    run_batch(options, options.image, options.request, "inpaint")
