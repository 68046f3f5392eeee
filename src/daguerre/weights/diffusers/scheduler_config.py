"""Noise schedule and prediction type to and from `scheduler_config.json`, and the sampler settings in it."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.diffusers_scheduler import SamplerConfig, read_scheduler
from daguerre.diffusion.schedule import ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.weights.diffusers.config_fields import Json, check_supported, choose

log = logging.getLogger(__name__)

PREDICTION_TYPES: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
BETA_SCHEDULES: dict[str, Literal["linear", "scaled_linear", "cosine"]] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}


def schedule_config(given: Mapping[str, Any], where: object) -> tuple[ScheduleConfig, Prediction]:
    """Read the noise schedule and the prediction type from the config of any diffusers scheduler.

    Raises:
        DaguerreError: the schedule or the prediction type is not supported.
    """
    check_supported(given, {"trained_betas": (None,)}, where)
    config = ScheduleConfig(
        kind=choose(given.get("beta_schedule", "linear"), BETA_SCHEDULES, "beta_schedule", where),
        beta_start=given.get("beta_start", 0.0001),
        beta_end=given.get("beta_end", 0.02),
        timesteps=given.get("num_train_timesteps", 1000),
        zero_terminal_snr=given.get("rescale_betas_zero_snr", False),
    )
    return config, choose(given.get("prediction_type", "epsilon"), PREDICTION_TYPES, "prediction_type", where)


def folder_sampler(scheduler: Mapping[str, Any]) -> SamplerConfig | None:
    """The sampler settings of a `scheduler_config.json`; None if diffusers did not write it or the scheduler is not supported.

    daguerre's own folders have a scheduler for other programs only; they do not carry the version of diffusers.
    """
    if "_diffusers_version" not in scheduler:
        return None
    try:  # latents are not clipped, as in diffusers' pipelines
        return read_scheduler(str(scheduler.get("_class_name")), {**scheduler, "clip_sample": False})
    except DaguerreError as error:
        log.warning("%s The default sampler is used instead.", error)
        return None


def schedule_json(config: ScheduleConfig, prediction: Prediction) -> Json:
    """The config of a `DDIMScheduler` that takes the same steps as `euler` with trailing spacing: down to σ = 0, without clipping."""
    names = {value: name for name, value in (*PREDICTION_TYPES.items(), *BETA_SCHEDULES.items())}
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": config.beta_end,
        "beta_schedule": names[config.kind],
        "beta_start": config.beta_start,
        "clip_sample": False,
        "num_train_timesteps": config.timesteps,
        "prediction_type": names[prediction],
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "set_alpha_to_one": True,
        "steps_offset": 1,  # has no effect on trailing spacing; diffusers warns about any other number
        "timestep_spacing": "trailing",
    }


def low_res_schedule_json(config: ScheduleConfig) -> Json:
    """The config of a `DDPMScheduler` that adds noise to the low-resolution input of an upscaler."""
    return {**schedule_json(config, "epsilon"), "_class_name": "DDPMScheduler", "clip_sample": True, "timestep_spacing": "leading"}
