"""Two models on one road: the first walks the noisy steps, and a refiner of the same latents the rest (Podell et al. 2023,
arXiv:2307.01952, section 2.5).

The cut lies in t, at a share of the schedule: with 0.8 the refiner, which was trained on the last 200 steps of 1000, has t < 200. It is
told the prompts in its own way, and begins its own history of steps.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.context import Pass, SamplingPlan


def with_refiner(model: LatentDiffusion, refiner: LatentDiffusion) -> LatentDiffusion:
    """The model with another that finishes its pictures.

    Raises:
        DaguerreError: they do not share latents or noise, or the refiner must be shown more than latents.
    """
    channels = model.unet.config.out_channels
    for own, other, what in (
        (channels, refiner.unet.config.out_channels, "latent channels"),
        (channels, refiner.unet.config.in_channels, "input channels"),
        (model.autoencoder.downsample_factor, refiner.autoencoder.downsample_factor, "pixels on a side for each place of its latents"),
        (model.schedule.config, refiner.schedule.config, "as its noise schedule"),
    ):
        if own != other:
            raise DaguerreError(
                f"The refiner {refiner.name!r} has {other} {what} where {model.name!r} has {own}; take one that was trained for this model."
            )
    files = (*model.files, *refiner.files) if model.files and refiner.files else ()
    return replace(model, refiner=refiner, name=f"{model.name} + {refiner.name}", files=files)


def split_at_refiner(plan: SamplingPlan, model: LatentDiffusion, share: float) -> SamplingPlan:
    """The plan in which the model's refiner walks the steps of every pass that lie after this share of the schedule."""
    return replace(plan, passes=tuple(part for each in plan.passes for part in _split_pass(each, model, share)))


def _split_pass(each: Pass, model: LatentDiffusion, share: float) -> Iterator[Pass]:
    T, total = len(model.schedule), len(each.sigmas) - 1
    t = model.schedule.sigma_to_t(each.sigmas[:-1])
    kept = int((t + 1e-6 >= round(T * (1 - share))).sum())  # steps that the model walks itself
    if kept:
        yield replace(each, sigmas=each.sigmas[: kept + 1], steps_after=total - kept)
    if kept < total:
        begin = _resume_latents if kept else each.init
        yield replace(each, sigmas=each.sigmas[kept:], init=begin, model=model.refiner, step_offset=kept)


def _resume_latents(_noise: Tensor, sigma: Tensor, before: Tensor | None) -> Tensor:
    """The latents of the pass before as they stand at σ: undoes `diffusion.finish`."""
    assert before is not None
    return before * (sigma**2 + 1).sqrt()
