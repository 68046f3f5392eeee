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

from daguerre.conditioning import Conditioner, PromptPlan
from daguerre.diffusion import Denoise, Denoiser, finish, guide
from daguerre.diffusion.samplers.registry import check_grid
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.nn.cpu.prepack import packed
from daguerre.pipelines.context import Pass, Plan, Stage
from daguerre.pipelines.decode import Developer, to_image
from daguerre.pipelines.images.output import Picture, Pictures
from daguerre.pipelines.memory_plan import in_turns, settled
from daguerre.pipelines.metadata.origins import origin_of
from daguerre.pipelines.planners.plans import planned
from daguerre.pipelines.planners.vq_prior import CodeStep, code_steps
from daguerre.pipelines.request import Request, changed
from daguerre.runtime.overflow import finite

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
    pictures: Pictures | None
    developer: Developer = field(repr=False)
    finish: Callable[[Image.Image], Image.Image] = field(default=lambda image: image, repr=False)

    def preview(self, picture: int = 0) -> Image.Image:
        """The predicted picture at 1/f of its size, nearly free."""
        return to_image(self.developer.glance(self.x0[picture : picture + 1])[0])

    def decode(self, picture: int = 0) -> Image.Image:
        """The predicted picture in full, at the price of the autoencoder's decoder."""
        return self.finish(to_image(self.developer.full(self.x0[picture : picture + 1])[0]))


@overload
def steps(model: LatentDiffusion, request: Request | None = None, **changes: Any) -> Iterator[Step]: ...
@overload
def steps(model: LatentPrior, request: Request | None = None, **changes: Any) -> Iterator[CodeStep]: ...
def steps(model: Model, request: Request | None = None, **changes: Any) -> Iterator[Step] | Iterator[CodeStep]:
    """Walk from noise to pictures; the last step carries them. A prior over codes draws row by row instead (see `pipelines.codes`).

    Args:
        model: from `daguerre.load`.
        request: what to make; None is `Request()`.
        changes: fields of `Request` that replace those of `request`.

    Raises:
        DaguerreError: at once, where the request asks for what there is not (sampler, spacing, size, …).
    """
    request = changed(request or Request(), changes)
    if isinstance(model, LatentPrior):
        return code_steps(model, request)
    stage = Stage.of(model, request)
    plan = planned(stage)
    largest = max((each.size for each in plan.passes), key=prod)
    stage = replace(stage, request=settled(stage.model, stage.request, largest))
    for each in plan.passes:
        if len(each.sigmas) > 1:
            check_grid(each.sigmas, stage.sampling.sampler)
    first = _walk(stage, plan.passes[0], None)
    return _developed(stage, plan, first)


def generate(model: Model, request: Request | None = None, **changes: Any) -> Pictures:
    """Make the pictures of a request: `steps` walked to its end, with the same arguments and errors."""
    *_, last = steps(model, request, **changes)
    assert last.pictures is not None
    return last.pictures


@torch.no_grad()
def _walk(stage: Stage, each: Pass, before: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass begun, from what the pass before made (None for the first); yields (x, x0)."""
    model, sampler, sigmas = each.model or stage.model, stage.sampling.sampler, each.sigmas
    x = each.begin(stage.noise(each.size).to(model.device), sigmas[0], before)
    if len(sigmas) == 1:  # nothing is walked
        return iter([(x, x)])
    options = stage.sampling.sampler_options(model.schedule, sigmas)
    return sampler(_guided(stage, each), x, sigmas, noise=sampler.noise(stage.sources), **options)


@torch.no_grad()
def _developed(stage: Stage, plan: Plan, walk: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Step]:
    developer, total, index, before = Developer(stage.model, low_memory=stage.request.low_memory), plan.steps, 0, None
    for number, each in enumerate(plan.passes):
        walk = walk if number == 0 else _walk(stage, each, before)
        ahead = each.sigmas[1:] if len(each.sigmas) > 1 else each.sigmas
        for (x, x0), sigma in zip(walk, ahead, strict=True):
            before, pictures = finish(x, sigma), None
            if index + 1 == total:
                images = [plan.finish(to_image(picture)) for picture in developer.full(before)]
                pictures = _pictures(stage, images)
            yield Step(index, total, sigma.item(), x, x0, pictures, developer, plan.finish)
            index += 1


def _guided(stage: Stage, each: Pass) -> Denoise:
    """The model told at every σ what the prompts say there, and what the task tells it besides."""
    model, request, sigmas = each.model or stage.model, stage.request, each.sigmas
    network = finite(model.unet, packed(model.unet, copies=not request.low_memory), "UNet")
    denoiser = Denoiser(in_turns(network) if request.low_memory else network, model.schedule, model.prediction, model.dtype)
    prompts = [prompt for prompt, _ in request.each]
    if not isinstance(model.conditioner, Conditioner):  # a model that is told nothing, or not by words
        return each.around(guide(denoiser, *each.tell(([model.conditioner(prompts)], [1.0]))))
    (width, height), steps = each.size, each.before + len(sigmas) - 1 + each.after
    plan = PromptPlan(model.conditioner.sized(height, width), prompts, [request.negative] * len(prompts), steps)
    levels = sigmas[1:-1].tolist()
    known: dict[int, Denoise] = {}  # by what is said, which the plan keeps

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        step = sum(sigma.item() <= level for level in levels)  # whose interval [σ_step, σ_step+1) this σ lies in
        voices = plan.at(each.before + step)
        if id(voices) not in known:
            known[id(voices)] = guide(denoiser, *each.tell(voices.guided(stage.guidance)))
        return known[id(voices)](x, sigma)

    return each.around(denoise)


def _pictures(stage: Stage, images: Sequence[Image.Image]) -> Pictures:
    origin = origin_of(stage.model, stage.request)
    return Pictures(Picture(image, replace(origin, picture=i)) for i, image in enumerate(images))
