"""Samplers: stateless generator functions of (denoise, x, sigmas) that yield (x, x0) after every step.

`SAMPLERS` holds them by name and checks their inputs; the functions themselves, one module per kind, do not.
"""

from daguerre.diffusion.samplers.euler_heun import SamplerSteps
from daguerre.diffusion.samplers.registry import SAMPLERS, Sampler

__all__ = ["SAMPLERS", "Sampler", "SamplerSteps"]
