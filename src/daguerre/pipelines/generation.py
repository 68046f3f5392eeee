"""The one road from a request to a picture, walked step by step.

    seed ─► noise ─► x_T ─► sampler(denoise, x, sigmas) ─► x, x0 at every σ ─► decode ─► pictures
            picture, mask ──┘ (what a task begins with, keeps and tells: see `pipelines.plans`)

`steps` yields after each noise level, so progress, preview, film and stopping are loops around it; `generate` walks to the end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from daguerre.conditioning import Conditioner, GuidedConditions, PromptSchedule
from daguerre.data.images import to_image
from daguerre.diffusion import Denoise, Denoiser, classifier_free_guidance, to_variance_preserving
from daguerre.diffusion.samplers.registry import check_grid
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.nn.cpu.prepack import prepack
from daguerre.pipelines.context import GenerationContext, Pass, SamplingPlan
from daguerre.pipelines.decode import LatentDecoder
from daguerre.pipelines.images.output import GeneratedImage, GeneratedImages
from daguerre.pipelines.memory_plan import one_at_a_time, with_memory_plan
from daguerre.pipelines.metadata.write import provenance_of
from daguerre.pipelines.planners import make_plan
from daguerre.pipelines.planners.vq_prior import CodeStep, stream_codes
from daguerre.pipelines.request import Request, with_fields
from daguerre.runtime.overflow import retry_in_float32

Model = LatentDiffusion | LatentPrior


@dataclass(frozen=True)
class Step:
    """Where the walk is after one noise level.

    Attributes:
        index: of this step, from 0.
        total: how many there are, None where that is not known.
        sigma: the noise level that x has reached; 0 at the end.
        x: (B, Z, h, w) noisy latents, x = x0 + σ·ε.
        x0: (B, Z, h, w) the clean latents predicted at the level before.
        pictures: at the last step, else None.
        developer: makes pictures of latents.
        finish: what the task does to each picture at the end, such as laying it over the one it was given.
    """

    index: int
    total: int | None
    sigma: float
    x: Tensor
    x0: Tensor
    images: GeneratedImages | None
    decoder: LatentDecoder = field(repr=False)
    finish: Callable[[Image.Image], Image.Image] = field(default=lambda image: image, repr=False)

    def preview(self, image: int = 0) -> Image.Image:
        """The predicted picture at 1/f of its size, nearly free."""
        return to_image(self.decoder.preview(self.x0[image : image + 1])[0])

    def decode(self, image: int = 0) -> Image.Image:
        """The predicted picture in full, at the price of the autoencoder's decoder."""
        return self.finish(to_image(self.decoder.decode(self.x0[image : image + 1])[0]))


@overload
def stream(model: LatentDiffusion, request: Request | None = None, **changes: Any) -> Iterator[Step]: ...
@overload
def stream(model: LatentPrior, request: Request | None = None, **changes: Any) -> Iterator[CodeStep]: ...
def stream(model: Model, request: Request | None = None, **changes: Any) -> Iterator[Step] | Iterator[CodeStep]:
    """Walk from noise to pictures; the last step carries them. A prior over codes draws row by row instead (see `pipelines.codes`).

    Args:
        model: from `daguerre.load`.
        request: what to make; None is `Request()`.
        changes: fields of `Request` that replace those of `request`.

    Raises:
        DaguerreError: at once, where the request asks for what there is not (sampler, spacing, size, …).
    """
    request = with_fields(request or Request(), changes)
    if isinstance(model, LatentPrior):
        return stream_codes(model, request)
    context = GenerationContext.of(model, request)
    plan = make_plan(context)
    largest = max((each.size for each in plan.passes), key=prod)
    context = replace(context, request=with_memory_plan(context.model, context.request, largest))
    for each in plan.passes:
        if len(each.sigmas) > 1:
            check_grid(each.sigmas, context.sampler_choice.sampler)
    first = _sample(context, plan.passes[0], None)
    return _decode_steps(context, plan, first)


def generate(model: Model, request: Request | None = None, **changes: Any) -> GeneratedImages:
    """Make the pictures of a request: `steps` walked to its end, with the same arguments and errors."""
    *_, last = stream(model, request, **changes)
    assert last.images is not None
    return last.images


@torch.no_grad()
def _sample(context: GenerationContext, each: Pass, before: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass begun, from what the pass before made (None for the first); yields (x, x0)."""
    model, sampler, sigmas = each.model or context.model, context.sampler_choice.sampler, each.sigmas
    x = each.init(context.noise(each.size).to(model.device), sigmas[0], before)
    if len(sigmas) == 1:  # nothing is walked
        return iter([(x, x)])
    options = context.sampler_choice.sampler_options(model.schedule, sigmas)
    return sampler(_build_denoiser(context, each), x, sigmas, noise=sampler.noise(context.generators), **options)


@torch.no_grad()
def _decode_steps(context: GenerationContext, plan: SamplingPlan, walk: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Step]:
    developer, total, index, before = LatentDecoder(context.model, low_memory=context.request.low_memory), plan.steps, 0, None
    for number, each in enumerate(plan.passes):
        walk = walk if number == 0 else _sample(context, each, before)
        ahead = each.sigmas[1:] if len(each.sigmas) > 1 else each.sigmas
        for (x, x0), sigma in zip(walk, ahead, strict=True):
            before, pictures = to_variance_preserving(x, sigma), None
            if index + 1 == total:
                images = [plan.finish(to_image(picture)) for picture in developer.decode(before)]
                pictures = _pictures(context, images)
            yield Step(index, total, sigma.item(), x, x0, pictures, developer, plan.finish)
            index += 1


def _build_denoiser(context: GenerationContext, each: Pass) -> Denoise:
    """The model told at every σ what the prompts say there, and what the task tells it besides."""
    model, request, sigmas = each.model or context.model, context.request, each.sigmas
    network = retry_in_float32(model.unet, prepack(model.unet, copies=not request.low_memory), "UNet")
    denoiser = Denoiser(one_at_a_time(network) if request.low_memory else network, model.schedule, model.prediction, model.dtype)
    prompts = [prompt for prompt, _ in request.items]
    if not isinstance(model.conditioner, Conditioner):  # a model that is told nothing, or not by words
        return each.wrap_denoiser(
            classifier_free_guidance(denoiser, *each.edit_conditions(GuidedConditions([model.conditioner(prompts)], [1.0])))
        )
    (width, height), steps = each.size, each.step_offset + len(sigmas) - 1 + each.steps_after
    plan = PromptSchedule(model.conditioner.with_size(height, width), prompts, [request.negative_prompt] * len(prompts), steps)
    levels = sigmas[1:-1].tolist()
    known: dict[int, Denoise] = {}  # by what is said, which the plan keeps

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        step = sum(sigma.item() <= level for level in levels)  # whose interval [σ_step, σ_step+1) this σ lies in
        voices = plan.at(each.step_offset + step)
        if id(voices) not in known:
            known[id(voices)] = classifier_free_guidance(denoiser, *each.edit_conditions(voices.with_guidance(context.guidance)))
        return known[id(voices)](x, sigma)

    return each.wrap_denoiser(denoise)


def _pictures(context: GenerationContext, images: Sequence[Image.Image]) -> GeneratedImages:
    origin = provenance_of(context.model, context.request)
    return GeneratedImages(GeneratedImage(image, replace(origin, index=i)) for i, image in enumerate(images))
