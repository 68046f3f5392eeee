"""A picture with the depth of another, by a model that is told a map of it (Stable Diffusion 2 depth, with five input channels).

The map is inverse depth, near being large, as MiDaS gives it (Ranftl et al. 2020, arXiv:1907.01341); only its order and its ratios
count, because it is stretched to [−1, 1].
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
from daguerre.pipelines.images.preprocess import SHAPES_DIFFER, ImageSize, flatten_input
from daguerre.pipelines.tasks import DepthToImage


def depth_to_image(context: GenerationContext, task: DepthToImage) -> SamplingPlan:
    """One pass from the picture under noise, or from noise alone, the network being told the map at every step."""
    depth = depths(task.depth)
    if task.image is None:
        size = context.size_on(Image.fromarray(depth))
        return SamplingPlan(
            (
                Pass(
                    size,
                    context.sigmas(),
                    from_noise(context),
                    edit_conditions=add_conditioning(context, concat=depth_map(depth, size, context.downsample_factor)),
                ),
            )
        )
    image = flatten_input(task.image)
    ratio = image.width * depth.shape[0] / (image.height * depth.shape[1])
    if abs(ratio - 1) > SHAPES_DIFFER:
        raise DaguerreError(
            f"The depth map is {depth.shape[1]}×{depth.shape[0]} and the picture {image.width}×{image.height}; give a map of its shape."
        )
    size = context.size_on(image)
    z = context.encode(to_tensor(image.resize(size, Image.Resampling.LANCZOS))[None], sample=task.latent == "sample")
    tell = add_conditioning(context, concat=depth_map(depth, size, context.downsample_factor))
    return SamplingPlan((Pass(size, context.sigmas(task.strength), from_latents(context, z, task.strength), edit_conditions=tell),))


def depths(given: InputImage) -> np.ndarray:
    """A given map as numbers (H, W), float32, in its own units.

    Raises:
        DaguerreError: it is coloured, or has places without a number.
    """
    image = given.pixels
    if image.mode in ("RGB", "RGBA"):
        channels = np.asarray(flatten_input(given)).astype(np.int16)
        if np.abs(channels - channels[..., :1]).max() > 2:  # a JPEG's greys differ by a step
            raise DaguerreError("The depth map has colours; give the grey one, white for near, before a palette was laid over it.")
        return channels[..., 0].astype(np.float32)
    values = np.array(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise DaguerreError("The depth map holds NaN or infinity; fill these places, for example with the farthest depth.")
    return values


def depth_map(depth: np.ndarray, size: ImageSize, f: int) -> Tensor:
    """What the network is told for pictures of `size`: (1, 1, height/f, width/f) in [−1, 1].

    Raises:
        DaguerreError: it is the same all over.
    """
    places = size[1] // f, size[0] // f
    values = F.interpolate(torch.from_numpy(depth)[None, None], size=places, mode="bicubic", align_corners=False)
    low, high = values.amin(), values.amax()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise DaguerreError("The depth map is without depth: it is the same all over. Give one that is brighter where things are nearer.")
    return 2 * (values - low) / (high - low) - 1
