"""The mathematics of diffusion: five values that know nothing of each other (schedule, prediction, spacing, guidance, sampler)."""

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import PREDICTIONS, Denoise, Denoiser, Network, Prediction, loss_weight, noisy, target, training_pair
from daguerre.diffusion.diffusers_scheduler import Sampling, read_scheduler
from daguerre.diffusion.ends import finish, start
from daguerre.diffusion.gaussian_mixture import Mixture, specimen
from daguerre.diffusion.guidance import cfg_plus_plus, guide, rescaled, within
from daguerre.diffusion.noise import Noise, brownian, draw, generators, independent
from daguerre.diffusion.sampler_names import Choice, get_sampler, resolve, sampler_rows, spacing_name
from daguerre.diffusion.samplers import SAMPLERS, Sampler
from daguerre.diffusion.schedule import Schedule, ScheduleConfig
from daguerre.diffusion.spacing import SPACINGS, halfway, refined, spaced, tcd_downs
from daguerre.diffusion.wrappers import clip, consistency, keep_epsilon, keep_known, threshold

__all__ = [
    "PREDICTIONS",
    "SAMPLERS",
    "SPACINGS",
    "Choice",
    "Conditioning",
    "Denoise",
    "Denoiser",
    "Mixture",
    "Network",
    "Noise",
    "Prediction",
    "Sampler",
    "Sampling",
    "Schedule",
    "ScheduleConfig",
    "brownian",
    "cfg_plus_plus",
    "clip",
    "consistency",
    "draw",
    "finish",
    "generators",
    "get_sampler",
    "guide",
    "halfway",
    "independent",
    "keep_epsilon",
    "keep_known",
    "loss_weight",
    "noisy",
    "read_scheduler",
    "refined",
    "rescaled",
    "resolve",
    "sampler_rows",
    "spaced",
    "spacing_name",
    "specimen",
    "start",
    "target",
    "tcd_downs",
    "threshold",
    "training_pair",
    "within",
]
