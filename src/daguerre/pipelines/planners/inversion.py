"""DDIM inversion: find the noise of an image, and generate from it again; or from noise between those of two images.

    image ─ inversion ─► x_T ─ sampler ─► the image again, or with a prompt a changed one

The inversion has no guidance and uses the negative prompt, by default the empty one.

Song et al. 2021, arXiv:2010.02502, section 5.4 and figure 6 (interpolation of the noise along the sphere).
"""

from dataclasses import replace

import torch
from torch import Tensor

from daguerre.conditioning import GuidedConditions
from daguerre.data.images import to_tensor
from daguerre.diffusion import SAMPLERS
from daguerre.errors import DaguerreError
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan, slerp
from daguerre.pipelines.images.preprocess import flatten_input, resize
from daguerre.pipelines.tasks import Inversion


def invert(context: GenerationContext, task: Inversion) -> SamplingPlan:
    """One pass from the images up to their noise, and one from the noise down again.

    Raises:
        DaguerreError: the sampler adds noise, so it does not return to the image; or the run starts at pure noise, which no image has.
    """
    sampler = context.resolved.sampler_config.sampler
    if sampler.stochastic or context.request.eta:
        raise DaguerreError(f"The sampler {sampler.name!r} adds noise in its steps; an inversion needs one that does not, such as 'ddim'.")
    images = [flatten_input(image) for image in (task.image, task.other) if image is not None]
    size, sigmas = context.size_on(images[0]), context.sigmas()
    z = context.encode(torch.stack([to_tensor(resize(image, size, task.resize_mode)) for image in images]))  # (1 or 2, Z, h, w)

    def image_latents(_noise: Tensor, sigma: Tensor, _previous: Tensor | None) -> Tensor:
        return z.to(context.model.device)

    def inverted(_noise: Tensor, sigma: Tensor, previous: Tensor | None) -> Tensor:
        assert previous is not None
        first, last = previous[:1], previous[-1:]  # variance-preserving, so of about unit variance
        mixed = first if task.other is None else slerp(first, last, task.weight)
        return (mixed * (1 + sigma**2).sqrt()).expand(len(context.generators), -1, -1, -1)

    def without_prompt(guided: GuidedConditions, _scale: float) -> GuidedConditions:
        return GuidedConditions([guided.conditions[-1][:1]], [1.0])

    down = replace(context.resolved.sampler_config, clip=None, threshold=None)  # what clipping changed could not come back
    up = replace(down, sampler=SAMPLERS["ddim_inversion"], options={})
    return SamplingPlan(
        (
            Pass(size, sigmas, image_latents, edit_conditions=without_prompt, sampler_config=up),
            Pass(size, sigmas, inverted, sampler_config=down),
        )
    )
