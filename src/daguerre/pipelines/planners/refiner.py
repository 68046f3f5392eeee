"""A base model runs the first steps, and a refiner with the same latents the rest (Podell et al. 2023, arXiv:2307.01952, section 2.5).

The switch is at a share of the schedule: with 0.8 the refiner, which was trained on the last 200 of 1000 timesteps, runs t < 200. It
encodes the prompts with its own text encoder, and its multistep samplers start without history.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.context import Pass, SamplingPlan


def with_refiner(model: LatentDiffusion, refiner: LatentDiffusion) -> LatentDiffusion:
    """The model with a refiner for its last steps.

    Raises:
        DaguerreError: their latents or noise schedules differ, or the refiner needs more than latents as input.
    """
    channels = model.unet.config.out_channels
    for base, other, what in (
        (channels, refiner.unet.config.out_channels, "latent channels"),
        (channels, refiner.unet.config.in_channels, "input channels"),
        (model.autoencoder.downsample_factor, refiner.autoencoder.downsample_factor, "as the downsampling factor of its autoencoder"),
        (model.schedule.config, refiner.schedule.config, "as its noise schedule"),
    ):
        if base != other:
            raise DaguerreError(
                f"The refiner {refiner.name!r} has {other} {what} where {model.name!r} has {base}; take one trained for this model."
            )
    files = (*model.files, *refiner.files) if model.files and refiner.files else ()
    return replace(model, refiner=refiner, name=f"{model.name} + {refiner.name}", files=files)


def split_at_refiner(plan: SamplingPlan, model: LatentDiffusion, switch_at: float) -> SamplingPlan:
    """The plan with the steps after the share `switch_at` of the schedule run by the model's refiner, in every pass."""
    return replace(plan, passes=tuple(part for each in plan.passes for part in _split_pass(each, model, switch_at)))


def _split_pass(each: Pass, model: LatentDiffusion, switch_at: float) -> Iterator[Pass]:
    T, total = len(model.schedule), len(each.sigmas) - 1
    t = model.schedule.sigma_to_t(each.sigmas[:-1])
    base_steps = int((t + 1e-6 >= round(T * (1 - switch_at))).sum())
    if base_steps:
        yield replace(each, sigmas=each.sigmas[: base_steps + 1], steps_after=total - base_steps)
    if base_steps < total:
        init = _resume_latents if base_steps else each.init
        yield replace(each, sigmas=each.sigmas[base_steps:], init=init, model=model.refiner, step_offset=base_steps)


def _resume_latents(_noise: Tensor, sigma: Tensor, previous: Tensor | None) -> Tensor:
    """The latents of the previous pass at σ; undoes `to_variance_preserving`."""
    assert previous is not None
    return previous * (sigma**2 + 1).sqrt()
