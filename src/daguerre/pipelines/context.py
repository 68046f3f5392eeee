"""What every task is planned with, and what a plan is made of: passes of the sampler, each beginning where the one before ended."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from daguerre.conditioning import GuidedConditions
from daguerre.diffusion import (
    Conditioning,
    Denoise,
    SamplerConfig,
    generators,
    parse_sampler_name,
    parse_spacing_name,
    randn_per_image,
    scale_initial_noise,
)
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.nn.circular import circular_padding
from daguerre.pipelines.images.preprocess import ImageSize, working_size
from daguerre.pipelines.request import Request
from daguerre.runtime.overflow import retry_in_float32

DEFAULT_SPACING = "trailing"  # the one that is right under zero terminal SNR, and good elsewhere


@dataclass(frozen=True)
class GenerationContext:
    """A model and a request, with names settled and the noise of each picture at hand.

    sources: each picture's own noise. others: that of the seeds that a variation moves towards, empty without one.
    """

    model: LatentDiffusion
    request: Request
    sampler_choice: SamplerConfig
    generators: list[torch.Generator]
    variation_generators: list[torch.Generator]

    @classmethod
    def of(cls, model: LatentDiffusion, request: Request) -> "GenerationContext":
        """Settle a request. Raises DaguerreError for a sampler or a spacing that there is not."""
        choice = parse_sampler_name(request.sampler)
        spacing = parse_spacing_name(request.spacing or choice.spacing or DEFAULT_SPACING)
        guidance = model.default_guidance if request.guidance_scale is None else request.guidance_scale
        request = replace(request, sampler=choice.sampler.name, spacing=spacing, guidance_scale=guidance)
        options = {} if request.eta is None else {"eta": request.eta}
        singles = request.split()
        return cls(
            with_circular_padding(model, request),
            request,
            SamplerConfig(choice.sampler, options, spacing, {"terminal": "exact"} if choice.sampler.exact_first_step else {}),
            generators([single.seed for single in singles]),
            generators([single.variation.seed for single in singles if single.variation]),
        )

    @property
    def downsample_factor(self) -> int:
        return self.model.autoencoder.downsample_factor

    @property
    def guidance(self) -> float:
        """The scale that the request asks for, or the model's own."""
        assert self.request.guidance_scale is not None  # as `of` settles it
        return self.request.guidance_scale

    @property
    def image_size(self) -> ImageSize:
        """(width, height) in pixels that the request asks for, or the model's own."""
        return resolve_size(self.model, self.request)

    def size_on(self, image: Image.Image) -> ImageSize:
        """(width, height) in pixels to work in on a picture: that of the request, or one that suits both picture and model."""
        request = self.request
        return check_size(
            working_size(image.size, self.model.sample_size, self.downsample_factor, request.width, request.height), self.downsample_factor
        )

    def sigmas(self, strength: float = 1.0) -> Tensor:
        """The part of the grid that is walked, (N + 1,): its last `strength`; 0 leaves its end alone, (1,).

        Raises:
            DaguerreError: the strength is above 0 and yet less than one step.
        """
        sigmas = self.sampler_choice.sigmas(self.model.schedule, self.request.steps)
        total = len(sigmas) - 1
        walked = min(int(total * strength + 1e-6), total)
        if strength > 0 and walked == 0:
            raise DaguerreError(
                f"Strength {strength:g} of {total} steps is less than one step; take a strength of {1 / total:.2g} or more, "
                f"or {math.ceil(1 / strength)} steps or more."
            )
        return sigmas[total - walked :]

    def noise(self, size: ImageSize) -> Tensor:
        """Standard normal noise for latents of pictures of `size`, (B, Z, h, w) on the CPU: each picture's own, drawn on and on."""
        noise, variation = randn_per_image(self.generators, self.shape(size)), self.request.variation
        return noise if variation is None else slerp(noise, randn_per_image(self.variation_generators, self.shape(size)), variation.weight)

    def shape(self, size: ImageSize) -> tuple[int, int, int]:
        """(Z, h, w) of the latents of a picture of `size`."""
        return self.model.unet.config.out_channels, size[1] // self.downsample_factor, size[0] // self.downsample_factor

    @torch.no_grad()
    def encode(self, x: Tensor, *, sample: bool = False) -> Tensor:
        """Scaled latents (B, Z, h, w), float32, of pictures x (B, 3, H, W) in [−1, 1]: the mean of what is encoded, or draws of it, one of
        (1, 3, H, W) for each picture of the request."""
        x = x.to(self.model.device, self.model.dtype)
        encode = retry_in_float32(self.model.autoencoder, self.model.autoencoder.encode, "autoencoder")
        if not sample:
            return encode(x).float()
        noise = randn_per_image(self.generators, self.shape((x.shape[-1], x.shape[-2]))).to(x)
        return encode(x.expand(len(noise), -1, -1, -1), noise).float()


InitLatents = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # noise, the first σ, what the pass before made -> x at that σ


@dataclass(frozen=True)
class Pass:
    """One run of the sampler.

    size: (width, height) in pixels of the pictures.
    sigmas: (N + 1,), the grid; of length 1 nothing is walked, and what it begins with is what it makes.
    begin: gives the first x, such as `from_noise` or `from_latents`.
    around: changes the denoiser as a whole, such as keeping what is known.
    tell: changes what the model is told at each step, and the weights.
    model: whose network walks; None is the context's own.
    before, after: steps of the run that this pass is a part of, for prompts that change with the step.
    """

    size: ImageSize
    sigmas: Tensor
    init: InitLatents
    wrap_denoiser: Callable[[Denoise], Denoise] = lambda denoise: denoise
    edit_conditions: Callable[[GuidedConditions], GuidedConditions] = lambda voices: voices
    model: LatentDiffusion | None = None
    step_offset: int = 0
    steps_after: int = 0


@dataclass(frozen=True)
class SamplingPlan:
    """How a task is done: one pass or several, and what is done to each picture at the end."""

    passes: tuple[Pass, ...]
    finish: Callable[[Image.Image], Image.Image] = lambda image: image

    @property
    def steps(self) -> int:
        return sum(max(len(each.sigmas) - 1, 1) for each in self.passes)


def from_noise(context: GenerationContext) -> InitLatents:
    """Begin with nothing but noise."""
    return lambda noise, sigma, _before: scale_initial_noise(noise, sigma, context.request.initial_noise)


def from_latents(context: GenerationContext, z: Tensor, strength: float) -> InitLatents:
    """Begin with latents z (1 or B, Z, h, w) under noise; at strength 1 with nothing of them."""
    if strength == 1:
        return from_noise(context)
    return lambda noise, sigma, _before: add_noise_at(z, noise, sigma)


def add_noise_at(z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """z + σ·ε, (B, *); at σ = inf the noise itself."""
    return noise if sigma.isinf() else z.to(noise) + sigma * noise


def add_conditioning(context: GenerationContext, **more: Tensor) -> Callable[[GuidedConditions], GuidedConditions]:
    """Tell every voice something more: fields of `Conditioning`, (1 or B, *), each for all pictures or for its own."""
    model = context.model
    more = {name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in more.items()}

    def told(cond: Conditioning) -> Conditioning:
        batch = max(cond.batch or 1, *map(len, more.values()))
        return replace(cond.expand(batch), **{name: value.expand(batch, *value.shape[1:]) for name, value in more.items()})

    return lambda guided: GuidedConditions([told(cond) for cond in guided.conditions], guided.weights)


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From a to b (B, *) along the great circle, each picture for itself, so that normal noise keeps its spread (Shoemake 1985)."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()  # (B,)
    if (angle.sin().abs() < 1e-4).any():  # the same noise twice, or its opposite
        return torch.lerp(a, b, weight)
    shares = ((1 - weight) * angle).sin() / angle.sin(), (weight * angle).sin() / angle.sin()
    first, second = (share.reshape(-1, *[1] * (a.ndim - 1)) for share in shares)
    return first * a + second * b


def with_circular_padding(model: LatentDiffusion, request: Request) -> LatentDiffusion:
    """The model as a request wants its edges: a twin on a torus, or itself."""
    if request.tiling == "none":
        return model
    autoencoder = circular_padding(model.autoencoder, request.tiling)  # type: ignore[type-var]
    refiner = model.refiner and with_circular_padding(model.refiner, request)
    return replace(model, unet=circular_padding(model.unet, request.tiling), autoencoder=autoencoder, refiner=refiner)


def resolve_size(model: LatentDiffusion | LatentPrior, request: Request) -> ImageSize:
    """(width, height) in pixels of the pictures of a request.

    Raises:
        DaguerreError: a side is not a multiple of what the autoencoder asks for; names one near by that is.
    """
    sides = request.width or model.sample_size, request.height or model.sample_size
    return check_size(sides, model.autoencoder.downsample_factor)


def check_size(size: ImageSize, f: int) -> ImageSize:
    """The size itself. Raises DaguerreError where a side is not a multiple of f."""
    for name, side in zip(("width", "height"), size, strict=True):
        if side % f:
            raise DaguerreError(f"The {name} {side} is not a multiple of {f}, as this model needs; {max(round(side / f), 1) * f} would be.")
    return size
