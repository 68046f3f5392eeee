"""The one road from a request to a picture, walked step by step.

    seed ─► noise ─► x_T ─► sampler(denoise, x, sigmas) ─► x, x0 at every σ ─► decode ─► pictures

`steps` yields after each noise level, so progress, preview, film and stopping are loops around it; `generate` walks to the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

import daguerre
from daguerre.diffusion import Denoise, Denoiser, Sampling, draw, finish, generators, guide, resolve, spacing_name, start
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines.codes import CodeStep, code_steps
from daguerre.pipelines.develop import Developer, to_image
from daguerre.pipelines.metadata import Origin
from daguerre.pipelines.picture import Picture, Pictures
from daguerre.pipelines.request import Request, changed
from daguerre.text import Conditioner, PromptPlan

Model = LatentDiffusion | LatentPrior
DEFAULT_SPACING = "trailing"  # the one that is right under zero terminal SNR, and good elsewhere


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
    """

    index: int
    total: int | None
    sigma: float
    x: Tensor
    x0: Tensor
    pictures: Pictures | None
    developer: Developer = field(repr=False)

    def preview(self, picture: int = 0) -> Image.Image:
        """The predicted picture at 1/f of its size, nearly free."""
        return to_image(self.developer.glance(self.x0[picture : picture + 1])[0])

    def decode(self, picture: int = 0) -> Image.Image:
        """The predicted picture in full, at the price of the autoencoder's decoder."""
        return to_image(self.developer.full(self.x0[picture : picture + 1])[0])


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
        width, height = (side // model.autoencoder.downsampling for side in picture_size(model, request))
        return code_steps(model, request, (height, width))
    choice = resolve(request.sampler)
    spacing = spacing_name(request.spacing or choice.spacing or DEFAULT_SPACING)
    request = replace(request, sampler=choice.sampler.name, spacing=spacing)
    sampling = Sampling(choice.sampler, {} if request.eta is None else {"eta": request.eta}, spacing)
    sigmas = sampling.sigmas(model.schedule, request.steps)
    sources = generators([seed for _, seed in request.each])
    width, height = (side // model.autoencoder.downsampling for side in picture_size(model, request))
    noise = draw(sources, (model.unet.config.out_channels, height, width))  # (B, Z, h, w), float32 on the CPU
    options = sampling.sampler_options(model.schedule, sigmas)
    with torch.no_grad():
        x = start(noise.to(model.device), sigmas[0], request.start)
        walk = choice.sampler(_guided(model, request, sigmas), x, sigmas, noise=choice.sampler.noise(sources), **options)
    return _developed(model, request, walk, sigmas)


def generate(model: Model, request: Request | None = None, **changes: Any) -> Pictures:
    """Make the pictures of a request: `steps` walked to its end, with the same arguments and errors."""
    *_, last = steps(model, request, **changes)
    assert last.pictures is not None
    return last.pictures


def picture_size(model: Model, request: Request) -> tuple[int, int]:
    """(width, height) in pixels of the pictures of a request.

    Raises:
        DaguerreError: a side is not a multiple of what the autoencoder asks for; names one near by that is.
    """
    f = model.autoencoder.downsampling
    sides = request.width or model.size, request.height or model.size
    for name, side in zip(("width", "height"), sides, strict=True):
        if side % f:
            raise DaguerreError(f"The {name} {side} is not a multiple of {f}, as this model needs; {max(round(side / f), 1) * f} would be.")
    return sides


@torch.no_grad()
def _developed(model: LatentDiffusion, request: Request, walk: Iterator[tuple[Tensor, Tensor]], sigmas: Tensor) -> Iterator[Step]:
    developer, total = Developer(model), len(sigmas) - 1
    for index, (x, x0) in enumerate(walk):
        sigma, pictures = sigmas[index + 1], None
        if index + 1 == total:
            pictures = _pictures(model, request, developer.full(finish(x, sigma)))
        yield Step(index, total, sigma.item(), x, x0, pictures, developer)


def _guided(model: LatentDiffusion, request: Request, sigmas: Tensor) -> Denoise:
    """The model told at every σ what the prompts say there."""
    denoiser = Denoiser(model.unet, model.schedule, model.prediction, model.dtype)
    prompts = [prompt for prompt, _ in request.each]
    if not isinstance(model.conditioner, Conditioner):  # a model that is told nothing, or not by words
        return guide(denoiser, [model.conditioner(prompts)], [1.0])
    width, height = picture_size(model, request)
    plan = PromptPlan(model.conditioner.sized(height, width), prompts, [request.negative] * len(prompts), len(sigmas) - 1)
    levels = sigmas[1:-1].tolist()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        step = sum(sigma.item() <= level for level in levels)  # whose interval [σ_step, σ_step+1) this σ lies in
        return guide(denoiser, *plan.at(step).guided(request.guidance))(x, sigma)

    return denoise


def _pictures(model: LatentDiffusion, request: Request, x: Tensor) -> Pictures:
    origin = Origin(
        request=request,
        picture=None,
        model=model.name,
        version=daguerre.__version__,
        torch=torch.__version__,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
    )
    return Pictures(Picture(to_image(picture), replace(origin, picture=i)) for i, picture in enumerate(x))
