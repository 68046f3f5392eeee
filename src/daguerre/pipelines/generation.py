"""From a request to images, one step at a time.

    seed ─► noise ─► x_T ─► sampler(denoise, x, sigmas) ─► x, x0 at every σ ─► decode ─► images
            image, mask ──┘ (initial latents, known pixels and conditions of a task: see `pipelines.planners`)

`stream` yields after each step, so that progress, previews, animations and cancelling are loops around it; `generate` runs to the end.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any, Unpack, overload

import torch
from PIL import Image
from torch import Tensor

from daguerre.conditioning import Conditioner, GuidedConditions, PromptConditions, PromptSchedule
from daguerre.data.images import to_image
from daguerre.diffusion import (
    Conditioning,
    Denoise,
    Denoiser,
    LearnedVariance,
    SamplerConfig,
    classifier_free_guidance,
    computed_steps,
    forecast_x0,
    to_variance_preserving,
)
from daguerre.diffusion.denoiser import NetworkFn
from daguerre.diffusion.samplers.registry import check_sigmas
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines.context import MIN_FORECAST_STEPS, GenerationContext, Pass, SamplingPlan
from daguerre.pipelines.decode import LatentDecoder
from daguerre.pipelines.images.output import GeneratedImage, GeneratedImages
from daguerre.pipelines.memory_plan import one_at_a_time, with_memory_plan
from daguerre.pipelines.metadata.write import provenance_of
from daguerre.pipelines.planners import make_plan
from daguerre.pipelines.planners.control import PreparedAdapter, adapted_network, check_control_images, prepared_adapters, with_control
from daguerre.pipelines.planners.vq_prior import CodeStep, stream_codes
from daguerre.pipelines.request import Request, RequestFields, with_fields
from daguerre.runtime.dtype import without_autocast

Model = LatentDiffusion | LatentPrior
RequestOrPrompt = Request | str | Sequence[str] | None


@dataclass(frozen=True)
class Step:
    """The state of a run after one step.

    Attributes:
        index: of this step, from 0.
        total: the number of steps.
        sigma: the noise level that x has reached; 0 at the end.
        x: (B, Z, h, w) noisy latents, x = x0 + σ·ε.
        x0: (B, Z, h, w) clean latents predicted in this step.
        images: the results at the last step, else None.
        decoder: turns latents into images.
        finish: what the task does to each decoded image, such as pasting it into the input image.
    """

    index: int
    total: int
    sigma: float
    x: Tensor
    x0: Tensor
    images: GeneratedImages | None
    decoder: LatentDecoder = field(repr=False)
    finish: Callable[[Image.Image], Image.Image] = field(default=lambda image: image, repr=False)

    def preview(self, image: int = 0) -> Image.Image:
        """The predicted image at almost no cost: at its size from the model's tiny decoder, else at 1/f of it."""
        return to_image(self.decoder.preview(self.x0[image : image + 1])[0])

    def decode(self, image: int = 0) -> Image.Image:
        """The predicted image at full size; runs the autoencoder's decoder."""
        return self.finish(to_image(self.decoder.decode(self.x0[image : image + 1])[0]))

    def decode_noisy(self, image: int = 0) -> Image.Image:
        """The noisy latents x_t at full size; runs the autoencoder's decoder."""
        x_t = to_variance_preserving(self.x[image : image + 1], torch.tensor(self.sigma))
        return to_image(self.decoder.decode(x_t)[0])


@overload
def stream(model: LatentDiffusion, request: RequestOrPrompt = None, **changes: Unpack[RequestFields]) -> Iterator[Step]: ...
@overload
def stream(model: LatentPrior, request: RequestOrPrompt = None, **changes: Unpack[RequestFields]) -> Iterator[CodeStep]: ...
def stream(model: Model, request: RequestOrPrompt = None, **changes: Unpack[RequestFields]) -> Iterator[Step] | Iterator[CodeStep]:
    """Generate images step by step; the last step carries them. An autoregressive prior samples row by row (see `planners.vq_prior`).

    Args:
        model: from `daguerre.load`.
        request: what to generate; a text, or a list of texts, is the prompt of a `Request`, and None is `Request()`.
        changes: fields of `Request` that replace those of `request`.

    Raises:
        DaguerreError: at once, if the request has unknown names or settings that the model does not support.
    """
    if not isinstance(request, Request):
        request = Request(prompt="" if request is None else request)
    with without_autocast():
        return _without_autocast(_start(model, with_fields(request, changes)))


def _start(model: Model, request: Request) -> Iterator[Step] | Iterator[CodeStep]:
    """Check and plan a request; returns the steps, which compute when they are taken."""
    if isinstance(model, LatentPrior):
        return stream_codes(model, request)
    check_control_images(model, request)
    context = GenerationContext.of(model, request)
    plan = make_plan(context)
    largest = max((each.size for each in plan.passes), key=prod)
    request = with_memory_plan(context.model, context.request, largest)
    context = replace(context, resolved=context.resolved._replace(request=request))
    for each in plan.passes:
        if len(each.sigmas) > 1:
            check_sigmas(each.sigmas, _sampler_config(context, each).sampler)
    return _decode_steps(context, plan, _sample(context, plan.passes[0], None))


def _without_autocast(steps: Iterator[Step] | Iterator[CodeStep]) -> Iterator[Any]:
    """The steps, each computed without autocast; between them the caller's autocast applies."""
    while True:
        with without_autocast():
            step = next(steps, None)
        if step is None:
            return
        yield step


def generate(model: Model, request: RequestOrPrompt = None, **changes: Unpack[RequestFields]) -> GeneratedImages:
    """Generate the images of a request; arguments and errors as in `stream`."""
    *_, last = stream(model, request, **changes)
    assert last.images is not None
    return last.images


@torch.no_grad()
def _sample(context: GenerationContext, each: Pass, previous: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps (x, x0) of one pass; `previous` is the result of the pass before, None for the first."""
    model, config, sigmas = each.model or context.model, _sampler_config(context, each), each.sigmas
    x = each.init(context.noise(each.size).to(model.device), sigmas[0], previous)
    if len(sigmas) == 1:  # no steps
        return iter([(x, x)])
    network, options = _network(context, model), config.sampler_options(model.schedule, sigmas)
    if isinstance(network, LearnedVariance) and options.get("variance") == "learned":
        options["fraction"] = network.fraction
    denoise = config.wrap_denoiser(_build_denoiser(context, each, network), model.schedule, sigmas)
    return config.sampler(each.wrap_denoiser(denoise), x, sigmas, noise=config.sampler.noise(context.generators), **options)


@torch.no_grad()
def _decode_steps(context: GenerationContext, plan: SamplingPlan, first: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Step]:
    """The steps of all passes; `first` are those of the first pass."""
    decoder, index, result = LatentDecoder(context.model, low_memory=context.request.low_memory), 0, None
    for number, each in enumerate(plan.passes):
        steps = first if number == 0 else _sample(context, each, result)
        grid = each.sigmas.flip(0) if _sampler_config(context, each).sampler.inversion else each.sigmas
        reached = grid[1:] if len(grid) > 1 else grid
        for (x, x0), sigma in zip(steps, reached, strict=True):
            result, images = to_variance_preserving(x, sigma), None
            if index + 1 == plan.steps:
                images = _with_provenance(context, [plan.finish(to_image(image)) for image in decoder.decode(result)])
            yield Step(index, plan.steps, sigma.item(), x, x0, images, decoder, plan.finish)
            index += 1


def _sampler_config(context: GenerationContext, each: Pass) -> SamplerConfig:
    return each.sampler_config or context.resolved.sampler_config


def _network(context: GenerationContext, model: LatentDiffusion) -> NetworkFn:
    """The UNet of a model, prepared for one run."""
    network = adapted_network(model, (), low_memory=context.request.low_memory)
    return LearnedVariance(network) if model.variance == "learned" else network


def _build_denoiser(context: GenerationContext, each: Pass, network: NetworkFn) -> Denoise:
    """The guided denoiser of a pass: at each σ with the conditions and the guidance scale of the step that σ belongs to.

    Step i covers σ in (σ_{i+1}, σ_i], so that samplers with several evaluations a step stay within it.
    """
    model, request, scales = each.model or context.model, context.request, context.guidance_scales(each)
    adapters = prepared_adapters(model, request, each.size) if each.model is None else []
    networks: dict[tuple[PreparedAdapter, ...], NetworkFn] = {(): network}  # by the adapters that change the UNet itself

    def denoiser_with(active: Sequence[PreparedAdapter]) -> Denoiser:
        inner = tuple(prepared for prepared in active if prepared.is_inside)
        if inner not in networks:
            networks[inner] = adapted_network(model, inner, low_memory=request.low_memory)
        controlled = with_control(networks[inner], active)
        controlled = one_at_a_time(controlled) if request.low_memory and active else controlled
        return Denoiser(controlled, model.schedule, model.prediction, model.dtype, context.resolved.sampler_config.rounding)

    by_step: list[Denoise] = []
    built: list[tuple[PromptConditions | Conditioning, float, list[PreparedAdapter], Denoise]] = []  # one for all steps with the same
    for step, (conditions, scale) in enumerate(zip(_step_conditions(context, each), scales, strict=True), each.step_offset):
        active = [prepared for prepared in adapters if prepared.adapter.applies(step, each.total_steps)]
        known = (entry[-1] for entry in built if entry[0] is conditions and entry[1] == scale and entry[2] == active)
        denoise = next(known, None)
        if denoise is None:
            denoiser = denoiser_with(active)
            prompts = isinstance(conditions, PromptConditions)
            guided = each.edit_conditions(conditions.with_guidance(scale) if prompts else GuidedConditions([conditions], [1.0]), scale)
            denoise = classifier_free_guidance(denoiser, *guided, rescale=request.guidance_rescale)
            built.append((conditions, scale, active, denoise))
        by_step.append(denoise)
    inner = [-sigma for sigma in each.sigmas[1:-1].tolist()]  # ascending
    denoise_at: Denoise = lambda x, sigma: by_step[bisect_right(inner, -sigma.item())](x, sigma)  # noqa: E731
    if not request.fast or len(by_step) < MIN_FORECAST_STEPS or _sampler_config(context, each).sampler.inversion:
        return denoise_at
    jumps = [step for step, (before, after) in enumerate(pairwise(by_step), 1) if before is not after]
    return forecast_x0(denoise_at, each.sigmas, computed_steps(len(by_step), jumps=jumps))


def _step_conditions(context: GenerationContext, each: Pass) -> list[PromptConditions] | list[Conditioning]:
    """The conditions of each step of a pass, the same object for steps with the same prompts."""
    model, request, steps = each.model or context.model, context.request, len(each.sigmas) - 1
    prompts = [prompt for prompt, _ in request.items]
    if not isinstance(model.conditioner, Conditioner):  # a model without prompts
        return [model.conditioner(prompts)] * steps
    width, height = each.size
    schedule = PromptSchedule(
        model.conditioner.with_size(height, width), prompts, [request.negative_prompt] * len(prompts), each.total_steps
    )
    return [schedule.at(each.step_offset + step) for step in range(steps)]


def _with_provenance(context: GenerationContext, images: Sequence[Image.Image]) -> GeneratedImages:
    provenance = provenance_of(context.model, context.request)
    return GeneratedImages(GeneratedImage(image, replace(provenance, index=i)) for i, image in enumerate(images))
