"""Colourisation: generate an image from the latents of its grey version, and take its colours.

    input [z_t ‖ E(grey)],   result: brightness of the input, colours of the generated image

Conditioning by concatenation: Rombach et al. 2022, arXiv:2112.10752, section 3.3; the task: Saharia et al. 2022, arXiv:2111.05826.
"""

from PIL import Image

from daguerre.conditioning.class_map_image import ConcatConditioner
from daguerre.data.images import to_tensor
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, from_noise
from daguerre.pipelines.images.preprocess import flatten_input, resize
from daguerre.pipelines.tasks import Colorize


def colorize(context: GenerationContext, task: Colorize) -> SamplingPlan:
    """One pass from noise, whose colours are given to the image at its own brightness."""
    conditioner = context.model.conditioner
    assert isinstance(conditioner, ConcatConditioner)
    image = flatten_input(task.image)
    size = context.size_on(image)
    grey = resize(image, size, task.resize_mode).convert("L")
    channels = conditioner.channels(context.encode, context.downsample_factor, to_tensor(grey.convert("RGB"))[None])
    edit = add_conditioning(context, concat=channels)
    return SamplingPlan((Pass(size, context.sigmas(), from_noise(context), edit_conditions=edit),), lambda new: with_colours_of(grey, new))


def with_colours_of(grey: Image.Image, coloured: Image.Image) -> Image.Image:
    """A grey image with the colours (Cb and Cr) of an RGB image of its size."""
    return Image.merge("YCbCr", (grey, *coloured.convert("YCbCr").split()[1:])).convert("RGB")
