"""Generate an image from a map, given as extra input channels: semantic synthesis (Rombach et al. 2022, arXiv:2112.10752, section 4.3.2),
edges, depth or poses."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daguerre.conditioning.class_map_image import ConcatConditioner, MapConditioner
from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, from_noise
from daguerre.pipelines.images.preprocess import flatten_input
from daguerre.pipelines.tasks import MapToImage


def map_to_image(context: GenerationContext, task: MapToImage) -> SamplingPlan:
    """One pass from noise, with the map resized to the image."""
    image, conditioner = flatten_input(task.image), context.model.conditioner
    assert isinstance(conditioner, MapConditioner | ConcatConditioner)
    size = context.size_on(image)
    exact = isinstance(conditioner, MapConditioner) or conditioner.kind == "semantic"  # values are classes, which have no mean
    resized = image.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)
    with torch.no_grad():
        if isinstance(conditioner, MapConditioner):
            encoded = conditioner.encode_map(class_map(resized))
        else:
            encoded = conditioner.channels(context.encode, context.downsample_factor, to_tensor(resized)[None])
    edit = add_conditioning(context, concat=encoded)
    return SamplingPlan((Pass(size, context.sigmas(), from_noise(context), edit_conditions=edit),))


def class_map(image: Image.Image) -> Tensor:
    """The class numbers (1, H, W) of a map whose grey values they are. Raises DaguerreError for a coloured map."""
    values = np.array(image)
    if (values != values[..., :1]).any():
        raise DaguerreError("The map has colours; give one whose grey values are class numbers, 0 to 181 for COCO.")
    return torch.from_numpy(values[..., 0]).long()[None]
