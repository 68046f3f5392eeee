"""Image variations: the model is conditioned on the CLIP embedding of an image instead of a prompt.

    context = CLIP(image), one token; the negative condition of guidance is all zeros

(Stable Diffusion image variations, Justin Pinkney 2022; CLIP: Radford et al. 2021, arXiv:2103.00020.)
"""

import torch

from daguerre.conditioning import GuidedConditions
from daguerre.conditioning.class_map_image import ImageConditioner
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, from_noise
from daguerre.pipelines.images.preprocess import clip_pixels, flatten_input
from daguerre.pipelines.tasks import ImageVariation


def image_variation(context: GenerationContext, task: ImageVariation) -> SamplingPlan:
    """One pass from noise, conditioned on the image's embedding."""
    request, conditioner = context.request, context.model.conditioner
    assert isinstance(conditioner, ImageConditioner)
    if any(request.prompts) or request.negative_prompt:
        raise DaguerreError(f"The model {context.model.name!r} takes an image and no prompt; leave the prompts out.")
    with torch.no_grad():
        embedding = conditioner.encode_image(clip_pixels(flatten_input(task.image), conditioner.encoder.config.size))  # (1, 1, D)
    conditions = [Conditioning(context=each.repeat(len(request.items), 1, 1)) for each in (embedding, torch.zeros_like(embedding))]
    return SamplingPlan(
        (
            Pass(
                context.image_size,
                context.sigmas(),
                from_noise(context),
                edit_conditions=lambda _, scale: GuidedConditions(conditions, [scale, 1 - scale]),
            ),
        )
    )
