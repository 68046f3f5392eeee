"""Samplers: stateless generator functions of (denoise, x, sigmas) that yield (x, x0) after every step.

`SAMPLERS` holds them by name and checks their inputs; the functions themselves do not.
"""

from daguerre.diffusion.samplers.consistency import lcm, tcd
from daguerre.diffusion.samplers.dpm_solver import dpm_solver
from daguerre.diffusion.samplers.dpmpp_multistep import dpmpp_2m, dpmpp_3m, unipc
from daguerre.diffusion.samplers.euler_heun import SamplerSteps, ddim_inversion, ddpm, dpm2, dpmpp_2s_a, dpmpp_sde, euler, heun
from daguerre.diffusion.samplers.linear_multistep import deis, ipndm, lms, plms, pndm
from daguerre.diffusion.samplers.registry import SAMPLERS, Sampler

__all__ = [
    "SAMPLERS",
    "Sampler",
    "SamplerSteps",
    "ddim_inversion",
    "ddpm",
    "deis",
    "dpm2",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2s_a",
    "dpmpp_3m",
    "dpmpp_sde",
    "euler",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "plms",
    "pndm",
    "tcd",
    "unipc",
]
