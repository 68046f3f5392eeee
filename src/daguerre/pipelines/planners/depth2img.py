"""Depth to image: generate an image that follows a depth map (Stable Diffusion 2 depth, with five input channels).

The map is inverse depth, large values being near, as MiDaS gives it (Ranftl et al. 2020, arXiv:1907.01341). It is scaled to [−1, 1], so
units and offset do not matter.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, from_latents, from_noise
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.images.preprocess import MAX_ASPECT_DIFFERENCE, ImageSize, flatten_input
from daguerre.pipelines.tasks import DepthToImage


def depth_to_image(context: GenerationContext, task: DepthToImage) -> SamplingPlan:
    """One pass from the image with noise added, or from noise, with the depth map as an extra input channel."""
    depth = depth_values(task.depth)
    if task.image is None:
        size, init, sigmas = context.size_on(Image.fromarray(depth)), from_noise(context), context.sigmas()
    else:
        image = flatten_input(task.image)
        ratio = image.width * depth.shape[0] / (image.height * depth.shape[1])
        if abs(ratio - 1) > MAX_ASPECT_DIFFERENCE:
            raise DaguerreError(
                f"The depth map is {depth.shape[1]}×{depth.shape[0]} and the image {image.width}×{image.height}; give a map of the "
                "image's proportions."
            )
        size = context.size_on(image)
        z = context.encode(to_tensor(image.resize(size, Image.Resampling.LANCZOS))[None], sample=task.latent == "sample")
        init, sigmas = from_latents(context, z, task.strength), context.sigmas(task.strength)
    edit = add_conditioning(context, concat=depth_condition(depth, size, context.downsample_factor))
    return SamplingPlan((Pass(size, sigmas, init, edit_conditions=edit),))


def depth_values(depth: InputImage) -> np.ndarray:
    """A depth map as numbers (H, W), float32, in its own units.

    Raises:
        DaguerreError: it is coloured, or holds NaN or infinity.
    """
    image = depth.pixels
    if image.mode in ("RGB", "RGBA"):
        channels = np.asarray(flatten_input(depth)).astype(np.int16)
        if np.abs(channels - channels[..., :1]).max() > 2:  # the greys of a JPEG differ by one step
            raise DaguerreError("The depth map has colours; give the grey one, white for near, without a colour palette.")
        return channels[..., 0].astype(np.float32)
    values = np.array(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise DaguerreError("The depth map holds NaN or infinity; fill these pixels, for example with the farthest depth.")
    return values


def depth_condition(depth: np.ndarray, size: ImageSize, f: int) -> Tensor:
    """The extra input channel for images of `size`: (1, 1, height/f, width/f) in [−1, 1].

    Raises:
        DaguerreError: the map is constant.
    """
    values = F.interpolate(torch.from_numpy(depth)[None, None], size=(size[1] // f, size[0] // f), mode="bicubic", align_corners=False)
    low, high = values.amin(), values.amax()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise DaguerreError("The depth map is without depth: all its pixels are equal. Give one that is brighter where things are nearer.")
    return 2 * (values - low) / (high - low) - 1
