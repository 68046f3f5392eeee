"""What a planner gets (`GenerationContext`) and returns (`SamplingPlan`, the passes of the sampler)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from daguerre.adapters.attach import attached_records
from daguerre.adapters.load import is_recorded
from daguerre.adapters.record import AdapterRecord
from daguerre.conditioning import Conditioner, GuidedConditions
from daguerre.diffusion import (
    SAMPLERS,
    Conditioning,
    Denoise,
    SamplerConfig,
    cfg_plus_plus,
    generators,
    guidance_interval,
    parse_sampler_name,
    parse_spacing_name,
    randn_per_image,
    scale_initial_noise,
)
from daguerre.diffusion.denoiser import InitialScale
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.nn.circular import circular_padding
from daguerre.pipelines.images.preprocess import ImageSize, working_size
from daguerre.pipelines.request import Request
from daguerre.runtime.overflow import retry_in_float32

DEFAULT_SAMPLER = "dpmpp_2m"
FORECAST_SAMPLERS = ("dpmpp_2m", "dpmpp_3m", "unipc", "euler", "deis")  # measured: see benchmarks/skipped_steps.md
MIN_FORECAST_STEPS = 10  # with fewer there is next to nothing to skip
DEFAULT_SPACING = "trailing"  # correct with zero terminal SNR, and good elsewhere


class ResolvedRequest(NamedTuple):
    """A request with the model's defaults filled in.

    request: with sampler, spacing, guidance scale and initial noise set, as metadata records it.
    """

    request: Request
    sampler_config: SamplerConfig
    guidance_scale: float
    initial_noise: InitialScale


@dataclass(frozen=True)
class GenerationContext:
    """A model, a resolved request, and the noise generators of its images.

    model: with clip skip and circular padding applied as requested.
    generators: one for each image.
    variation_generators: one for each image with the variation's seed; empty without a variation.
    """

    model: LatentDiffusion
    resolved: ResolvedRequest
    generators: list[torch.Generator]
    variation_generators: list[torch.Generator]

    @classmethod
    def of(cls, model: LatentDiffusion, request: Request) -> "GenerationContext":
        """Resolve a request. Raises DaguerreError for settings that do not exist or that the model does not support."""
        resolved = resolve_request(model, request)
        model = with_circular_padding(with_clip_skip(model, request.clip_skip), request.tiling)
        singles = request.split()
        return cls(
            model,
            resolved,
            generators([single.seed for single in singles]),
            generators([single.variation.seed for single in singles if single.variation]),
        )

    @property
    def request(self) -> Request:
        return self.resolved.request

    @property
    def downsample_factor(self) -> int:
        return self.model.autoencoder.downsample_factor

    @property
    def image_size(self) -> ImageSize:
        """(width, height) in pixels: as requested, or the model's own."""
        return resolve_size(self.model, self.request)

    def size_on(self, image: Image.Image) -> ImageSize:
        """(width, height) in pixels to process an image at: as requested, or a size that suits both image and model."""
        request, f = self.request, self.downsample_factor
        return check_size(working_size(image.size, self.model.sample_size, f, request.width, request.height), f)

    def sigmas(self, strength: float = 1.0) -> Tensor:
        """The noise levels to sample, (N + 1,): the last share `strength` of the grid; strength 0 leaves only the final level, (1,).

        Raises:
            DaguerreError: the strength is above 0 but gives fewer steps than the sampler needs; states how many are enough.
        """
        steps, sampler = self.request.steps, self.resolved.sampler_config.sampler
        sigmas = self._last_sigmas(steps, strength)
        if strength == 0 or sampler.can_run(sigmas):
            return sigmas
        first = max(steps + 1, int(sampler.min_steps / strength))
        enough = next((n for n in range(first, first + 32) if sampler.can_run(self._last_sigmas(n, strength))), None)
        more = f"{enough} steps or more" if enough else "more steps"
        if strength < 1 and len(sigmas) == 1:
            least = 1 / (len(self._last_sigmas(steps, 1)) - 1)
            raise DaguerreError(
                f"Strength {strength:g} of {steps} steps is less than one step; use a strength of {least:.2g} or more, or {more}."
            )
        share = "" if strength == 1 else f" and strength {strength:g}"
        raise DaguerreError(
            f"{steps} steps are too few for the sampler {sampler.name!r} with the spacing {self.request.spacing!r}{share}; use {more}."
        )

    def _last_sigmas(self, steps: int, strength: float) -> Tensor:
        """The last share `strength` of the grid of so many steps, (N + 1,)."""
        sigmas = self.resolved.sampler_config.sigmas(self.model.schedule, steps)
        total = len(sigmas) - 1
        return sigmas[total - min(int(total * strength + 1e-6), total) :]

    def guidance_scales(self, each: "Pass") -> list[float]:
        """The guidance scale of each step of a pass."""
        scale, interval = self.resolved.guidance_scale, self.request.guidance_interval
        scales = cfg_plus_plus(scale, each.sigmas) if self.request.cfg_plus_plus else [scale] * (len(each.sigmas) - 1)
        return scales if interval is None else guidance_interval(scales, *interval, first=each.step_offset, total=each.total_steps)

    def noise(self, size: ImageSize) -> Tensor:
        """Standard normal noise for latents of images of `size`, (B, Z, h, w) on the CPU; each image's generator continues."""
        noise, variation = randn_per_image(self.generators, self.latent_shape(size)), self.request.variation
        if variation is None:
            return noise
        return slerp(noise, randn_per_image(self.variation_generators, self.latent_shape(size)), variation.strength)

    def latent_shape(self, size: ImageSize) -> tuple[int, int, int]:
        """(Z, h, w) of the latents of an image of `size`."""
        return self.model.latent_channels, size[1] // self.downsample_factor, size[0] // self.downsample_factor

    @torch.no_grad()
    def encode(self, x: Tensor, *, sample: bool = False) -> Tensor:
        """Scaled latents (B, Z, h, w), float32, of images x (B, 3, H, W) in [−1, 1].

        sample: sample the posterior instead of taking its mean; x (1, 3, H, W) then gives one sample for each image of the request.
        """
        x = x.to(self.model.device, self.model.dtype)
        encode = retry_in_float32(self.model.autoencoder, self.model.autoencoder.encode, "autoencoder")
        if not sample:
            return encode(x).float()
        noise = randn_per_image(self.generators, self.latent_shape((x.shape[-1], x.shape[-2]))).to(x)
        return encode(x.expand(len(noise), -1, -1, -1), noise).float()


InitLatents = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # noise, first σ, result of the previous pass -> x at that σ


@dataclass(frozen=True)
class Pass:
    """One run of the sampler.

    size: (width, height) in pixels of the images.
    sigmas: (N + 1,), the noise levels; with length 1 nothing is sampled, and the initial latents are the result.
    init: gives the initial x, such as `from_noise` or `from_latents`.
    wrap_denoiser: changes the denoiser as a whole, for instance to keep the known part of an image.
    edit_conditions: changes the conditions of each step and their weights; the second argument is the guidance scale of the step.
    model: whose UNet runs; None is the context's model.
    sampler_config: None is the request's; the sampler of an inversion runs its noise levels in reverse.
    step_offset, steps_after: steps of the same run before and after this pass, for prompts that change with the step.
    """

    size: ImageSize
    sigmas: Tensor
    init: InitLatents
    wrap_denoiser: Callable[[Denoise], Denoise] = lambda denoise: denoise
    edit_conditions: Callable[[GuidedConditions, float], GuidedConditions] = lambda guided, _scale: guided
    model: LatentDiffusion | None = None
    sampler_config: SamplerConfig | None = None
    step_offset: int = 0
    steps_after: int = 0

    @property
    def total_steps(self) -> int:
        """The steps of the run that this pass is a part of."""
        return self.step_offset + len(self.sigmas) - 1 + self.steps_after


@dataclass(frozen=True)
class SamplingPlan:
    """How a task is done: one or more passes, and what is done to each image at the end."""

    passes: tuple[Pass, ...]
    finish: Callable[[Image.Image], Image.Image] = lambda image: image

    @property
    def steps(self) -> int:
        return sum(max(len(each.sigmas) - 1, 1) for each in self.passes)


def resolve_request(model: LatentDiffusion, request: Request) -> ResolvedRequest:
    """Fill in the model's defaults.

    The settings of the model's own scheduler apply if the request names neither sampler nor spacing, or exactly the scheduler's.

    Raises:
        DaguerreError: an unknown sampler or spacing, or settings that exclude each other.
    """
    own = model.sampler_config
    if request.sampler is None:
        sampler, spacing = (own.sampler, own.spacing) if own else (SAMPLERS[DEFAULT_SAMPLER], DEFAULT_SPACING)
    else:
        choice = parse_sampler_name(request.sampler)
        sampler, spacing = choice.sampler, choice.spacing
    if sampler.inversion:
        raise DaguerreError(f"The sampler {sampler.name!r} turns images into noise and cannot generate; take another, such as 'euler'.")
    spacing = parse_spacing_name(request.spacing or spacing or DEFAULT_SPACING)
    if own is not None and (sampler, spacing) == (own.sampler, own.spacing):
        config = own
    else:
        options = {"variance": model.variance} if sampler.name == "ddpm" else {}
        clip = 1.0 if model.autoencoder.downsample_factor == 1 else None  # pixels lie in [−1, 1]
        exact = sampler.exact_first_step and (model.prediction != "epsilon" or model.schedule.config.zero_terminal_snr)
        config = SamplerConfig(sampler, options, spacing, {"terminal": "exact"} if exact else {}, clip=clip)
    if request.eta is not None:
        config = replace(config, options={**config.options, "eta": request.eta})
    if request.dynamic_threshold is not None:
        if model.autoencoder.downsample_factor > 1:
            raise DaguerreError(f"dynamic_threshold needs a model of pixels, and {model.name!r} generates latents; use guidance_rescale.")
        config = replace(config, threshold=(request.dynamic_threshold, math.inf))
    guidance_scale = model.default_guidance if request.guidance_scale is None else request.guidance_scale
    if request.cfg_plus_plus and (sampler.name != "euler" or request.eta or not 0 <= guidance_scale <= 1):
        raise DaguerreError(
            f"CFG++ needs the sampler 'euler' without eta and a guidance scale from 0 to 1, such as 0.6; got {sampler.name!r} and "
            f"{guidance_scale:g}."
        )
    if request.fast:
        _check_forecast(request, config)
    initial_noise = request.initial_noise or config.initial_scale
    request = replace(
        request,
        sampler=sampler.name,
        spacing=spacing,
        guidance_scale=guidance_scale,
        initial_noise=initial_noise,
        adapters=resolve_adapters(model, request),
    )
    return ResolvedRequest(request, config, guidance_scale, initial_noise)


def _check_forecast(request: Request, config: SamplerConfig) -> None:
    """Raise DaguerreError where skipping steps would change the image more than taking fewer steps, or gain nothing."""
    sampler = config.sampler
    if request.steps < MIN_FORECAST_STEPS:
        raise DaguerreError(
            f"fast needs {MIN_FORECAST_STEPS} steps or more, of which it skips half; with {request.steps} steps, leave it out."
        )
    if sampler.name not in FORECAST_SAMPLERS or config.options.get("eta"):
        raise DaguerreError(f"fast needs a sampler without fresh noise, one of {', '.join(FORECAST_SAMPLERS)}; this is {sampler.name!r}.")
    if request.cfg_plus_plus:
        raise DaguerreError("fast does not go with CFG++, whose guidance differs in each step; leave one of the two out.")


def resolve_adapters(model: LatentDiffusion, request: Request) -> tuple[AdapterRecord, ...]:
    """The records of the model's adapters. Raises DaguerreError if the request names others."""
    attached = attached_records(model)
    fits = len(request.adapters) == len(attached) and all(map(is_recorded, request.adapters, attached))
    if request.adapters and not fits:
        wanted, has = (", ".join(record.name for record in records) or "none" for records in (request.adapters, attached))
        raise DaguerreError(
            f"The request needs the adapters {wanted}, and the model {model.name!r} has {has}; attach them with "
            "`adapters.load.with_recorded_adapters(model, request.adapters)`."
        )
    return attached


def from_noise(context: GenerationContext) -> InitLatents:
    """Start from noise alone."""
    return lambda noise, sigma, _previous: scale_initial_noise(noise, sigma, context.resolved.initial_noise)


def from_latents(context: GenerationContext, z: Tensor, strength: float) -> InitLatents:
    """Start from latents z (1 or B, Z, h, w) with noise added; at strength 1 from noise alone."""
    if strength == 1:
        return from_noise(context)
    return lambda noise, sigma, _previous: add_noise_at(z, noise, sigma)


def add_noise_at(z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """z + σ·ε, (B, *); at σ = inf the noise itself."""
    return noise if sigma.isinf() else z.to(noise) + sigma * noise


def add_conditioning(context: GenerationContext, **tensors: Tensor) -> Callable[[GuidedConditions, float], GuidedConditions]:
    """Add fields of `Conditioning` (1 or B, *), shared by all images or one for each, to every condition."""
    model = context.model
    tensors = {name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in tensors.items()}

    def add(cond: Conditioning) -> Conditioning:
        batch = max(cond.batch or 1, *map(len, tensors.values()))
        return replace(cond.expand(batch), **{name: value.expand(batch, *value.shape[1:]) for name, value in tensors.items()})

    return lambda guided, _scale: GuidedConditions([add(cond) for cond in guided.conditions], guided.weights)


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Interpolate from a to b (B, *) along the great circle, image by image; normal noise keeps its variance (Shoemake 1985)."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()  # (B,)
    if (angle.sin().abs() < 1e-4).any():  # equal or opposite noise
        return torch.lerp(a, b, weight)
    shares = ((1 - weight) * angle).sin() / angle.sin(), (weight * angle).sin() / angle.sin()
    first, second = (share.reshape(-1, *[1] * (a.ndim - 1)) for share in shares)
    return first * a + second * b


def with_circular_padding(model: LatentDiffusion, tiling: Literal["none", "both", "x", "y"]) -> LatentDiffusion:
    """The model with convolutions that wrap around along the axes of `tiling`; itself for "none"."""
    if tiling == "none":
        return model
    autoencoder = circular_padding(model.autoencoder, tiling)  # type: ignore[type-var]
    refiner = model.refiner and with_circular_padding(model.refiner, tiling)
    return replace(model, unet=circular_padding(model.unet, tiling), autoencoder=autoencoder, refiner=refiner)


def with_clip_skip(model: LatentDiffusion, clip_skip: int | None) -> LatentDiffusion:
    """The model with prompts encoded by another CLIP layer. Raises DaguerreError if it has no CLIP text encoder."""
    if clip_skip is None:
        return model
    if not isinstance(model.conditioner, Conditioner):
        raise DaguerreError(f"clip_skip = {clip_skip} has no effect on {model.name!r}, which has no text encoder; remove it.")
    refiner = model.refiner and with_clip_skip(model.refiner, clip_skip)
    return replace(model, conditioner=model.conditioner.with_clip_skip(clip_skip), refiner=refiner)


def resolve_size(model: LatentDiffusion | LatentPrior, request: Request) -> ImageSize:
    """(width, height) in pixels of the images of a request.

    Raises:
        DaguerreError: a side is not a multiple of the autoencoder's factor; names the nearest one that is.
    """
    size = request.width or model.sample_size, request.height or model.sample_size
    return check_size(size, model.autoencoder.downsample_factor)


def check_size(size: ImageSize, f: int) -> ImageSize:
    """The size itself. Raises DaguerreError if a side is not a multiple of f."""
    for name, side in zip(("width", "height"), size, strict=True):
        if side % f:
            raise DaguerreError(f"The {name} {side} is not a multiple of {f}, as this model needs; {max(round(side / f), 1) * f} would be.")
    return size
