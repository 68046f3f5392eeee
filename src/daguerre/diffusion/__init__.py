"""The mathematics of diffusion, as five independent values: schedule, prediction, spacing, guidance and sampler."""

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import (
    PREDICTIONS,
    Denoise,
    Denoiser,
    NetworkFn,
    Prediction,
    add_noise,
    loss_weight,
    predicted_x0,
    prediction_target,
    scale_initial_noise,
    to_variance_preserving,
    training_pair,
)
from daguerre.diffusion.diffusers_scheduler import SamplerConfig, read_scheduler
from daguerre.diffusion.gaussian_mixture import GaussianMixture, two_gaussians
from daguerre.diffusion.guidance import cfg_plus_plus, classifier_free_guidance, guidance_interval, rescale_guidance
from daguerre.diffusion.learned_variance import VARIANCES, LearnedVariance, Variance, split_variance
from daguerre.diffusion.noise import NoiseSampler, brownian_noise, gaussian_noise, generators, randn_per_image
from daguerre.diffusion.sampler_names import SamplerChoice, parse_sampler_name, parse_spacing_name, sampler_table
from daguerre.diffusion.samplers import SAMPLERS, Sampler
from daguerre.diffusion.schedule import Schedule, ScheduleConfig
from daguerre.diffusion.spacing import SPACINGS, get_sigmas, midpoints, tcd_targets
from daguerre.diffusion.variational_bound import Posterior, VariationalBound, variational_bound
from daguerre.diffusion.wrappers import clip_x0, computed_steps, dynamic_threshold, forecast_x0, keep_epsilon, lcm_boundary, replace_known

__all__ = [
    "PREDICTIONS", "SAMPLERS", "SPACINGS", "VARIANCES", "Conditioning", "Denoise", "Denoiser", "GaussianMixture", "LearnedVariance",
    "NetworkFn", "NoiseSampler", "Posterior", "Prediction", "Sampler", "SamplerChoice", "SamplerConfig", "Schedule", "ScheduleConfig",
    "Variance", "VariationalBound", "add_noise", "brownian_noise", "cfg_plus_plus", "classifier_free_guidance", "clip_x0", "computed_steps",
    "dynamic_threshold", "forecast_x0", "gaussian_noise", "generators", "get_sigmas", "guidance_interval", "keep_epsilon", "lcm_boundary",
    "loss_weight", "midpoints", "parse_sampler_name", "parse_spacing_name", "predicted_x0", "prediction_target", "randn_per_image",
    "read_scheduler", "replace_known", "rescale_guidance", "sampler_table", "scale_initial_noise", "split_variance", "tcd_targets",
    "to_variance_preserving", "training_pair", "two_gaussians", "variational_bound",
]  # fmt: skip
