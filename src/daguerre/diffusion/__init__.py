"""The mathematics of diffusion: five values that know nothing of each other (schedule, prediction, spacing, guidance, sampler)."""

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import (
    PREDICTIONS,
    Denoise,
    Denoiser,
    NetworkFn,
    Prediction,
    add_noise,
    loss_weight,
    prediction_target,
    training_pair,
)
from daguerre.diffusion.diffusers_scheduler import SamplerConfig, read_scheduler
from daguerre.diffusion.ends import scale_initial_noise, to_variance_preserving
from daguerre.diffusion.gaussian_mixture import GaussianMixture, two_gaussians
from daguerre.diffusion.guidance import cfg_plus_plus, classifier_free_guidance, guidance_interval, rescale_guidance
from daguerre.diffusion.noise import NoiseSampler, brownian_noise, gaussian_noise, generators, randn_per_image
from daguerre.diffusion.sampler_names import SamplerChoice, get_sampler, parse_sampler_name, sampler_table, spacing_name
from daguerre.diffusion.samplers import SAMPLERS, Sampler
from daguerre.diffusion.schedule import Schedule, ScheduleConfig
from daguerre.diffusion.spacing import SPACINGS, get_sigmas, midpoints, subdivide, tcd_targets
from daguerre.diffusion.wrappers import clip_x0, dynamic_threshold, keep_epsilon, lcm_boundary, replace_known

__all__ = [
    "PREDICTIONS",
    "SAMPLERS",
    "SPACINGS",
    "SamplerChoice",
    "Conditioning",
    "Denoise",
    "Denoiser",
    "GaussianMixture",
    "NetworkFn",
    "NoiseSampler",
    "Prediction",
    "Sampler",
    "SamplerConfig",
    "Schedule",
    "ScheduleConfig",
    "brownian_noise",
    "cfg_plus_plus",
    "clip_x0",
    "lcm_boundary",
    "randn_per_image",
    "to_variance_preserving",
    "generators",
    "get_sampler",
    "classifier_free_guidance",
    "midpoints",
    "gaussian_noise",
    "keep_epsilon",
    "replace_known",
    "loss_weight",
    "add_noise",
    "read_scheduler",
    "subdivide",
    "rescale_guidance",
    "parse_sampler_name",
    "sampler_table",
    "get_sigmas",
    "spacing_name",
    "two_gaussians",
    "scale_initial_noise",
    "prediction_target",
    "tcd_targets",
    "dynamic_threshold",
    "training_pair",
    "guidance_interval",
]
