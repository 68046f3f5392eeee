"""Semantic synthesis: generate an image from a class map, given as extra input channels (Rombach et al. 2022, arXiv:2112.10752, section
4.3.2)."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daguerre.conditioning.class_map_image import MapConditioner
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, add_conditioning, from_noise
from daguerre.pipelines.images.preprocess import flatten_input
from daguerre.pipelines.tasks import MapToImage


def map_to_image(context: GenerationContext, task: MapToImage) -> SamplingPlan:
    """One pass from noise, with the class map resized to the image."""
    image, conditioner = flatten_input(task.image), context.model.conditioner
    assert isinstance(conditioner, MapConditioner)
    size = context.size_on(image)
    with torch.no_grad():
        encoded = conditioner.encode_map(class_map(image.resize(size, Image.Resampling.NEAREST)))
    edit = add_conditioning(context, concat=encoded)
    return SamplingPlan((Pass(size, context.sigmas(), from_noise(context), edit_conditions=edit),))


def class_map(image: Image.Image) -> Tensor:
    """The class numbers (1, H, W) of a map whose grey values they are. Raises DaguerreError for a coloured map."""
    values = np.array(image)
    if (values != values[..., :1]).any():
        raise DaguerreError("The map has colours; give one whose grey values are class numbers, 0 to 181 for COCO.")
    return torch.from_numpy(values[..., 0]).long()[None]
