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
    """One pass from noise, whose colours are given to the image, at its own size unless the request has one."""
    conditioner = context.model.conditioner
    assert isinstance(conditioner, ConcatConditioner)
    image, request = flatten_input(task.image), context.request
    size = context.size_on(image)
    keeps_size = request.width is None and request.height is None
    fitted = resize(image, size, "stretch" if keeps_size else task.resize_mode)
    channels = conditioner.channels(context.encode, context.downsample_factor, to_tensor(fitted.convert("L").convert("RGB"))[None])
    edit = add_conditioning(context, concat=channels)
    grey = (image if keeps_size else fitted).convert("L")
    return SamplingPlan((Pass(size, context.sigmas(), from_noise(context), edit_conditions=edit),), lambda new: with_colours_of(grey, new))


def with_colours_of(grey: Image.Image, coloured: Image.Image) -> Image.Image:
    """A grey image with the colours (Cb and Cr) of an RGB image of its proportions."""
    return Image.merge("YCbCr", (grey, *coloured.resize(grey.size).convert("YCbCr").split()[1:])).convert("RGB")
