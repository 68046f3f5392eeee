"""A scheduler class of diffusers with its configuration, as the independent values it is made of.

Such a configuration (`scheduler/scheduler_config.json`) welds schedule, prediction, spacing and sampler together. `read_scheduler` takes
out what belongs to sampling; the values a configuration leaves out are those of the class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from daguerre.diffusion.denoiser import Rounding
from daguerre.diffusion.ends import InitialScale
from daguerre.diffusion.samplers.registry import SAMPLERS, Sampler
from daguerre.diffusion.schedule import Schedule
from daguerre.diffusion.spacing import get_sigmas, midpoints, tcd_targets
from daguerre.errors import DaguerreError, nearest

JsonConfig = Mapping[str, Any]


@dataclass(frozen=True)
class SamplerConfig:
    """Everything of a sampling run that a scheduler configuration decides.

    options: keywords of the sampler. spacing_options: keywords of `spaced`. ends: the spacing between whose first and last σ a spacing in
    σ lies, None for the schedule's own. rounding: see `Denoiser`. scale: see `ends.start`. clip: x0 to ±clip. threshold: the quantile
    and the maximum of `wrappers.threshold`.
    """

    sampler: Sampler
    options: JsonConfig = field(default_factory=dict)
    spacing: str = "linspace"
    spacing_options: JsonConfig = field(default_factory=dict)
    sigma_range: tuple[str, JsonConfig] | None = None
    rounding: Rounding = "none"
    scale: InitialScale = "variance_preserving"
    clip: float | None = None
    threshold: tuple[float, float] | None = None

    def sigmas(self, schedule: Schedule, steps: int) -> Tensor:
        """The grid of this configuration, (steps + 1,) or one less; see `spaced`."""
        options = dict(self.spacing_options)
        if self.sigma_range is not None:
            outer = get_sigmas(schedule, steps, self.sigma_range[0], **self.sigma_range[1])
            options |= {"sigma_max": outer[0].item(), "sigma_min": outer[-2].item()}
        return get_sigmas(schedule, steps, self.spacing, **options)

    def sampler_options(self, schedule: Schedule, sigmas: Tensor) -> dict[str, Any]:
        """The keywords of the sampler on this grid: `options`, and the σ inside the steps for those that need them."""
        if self.sampler.accepts("midpoints"):
            return {**self.options, "midpoints": midpoints(schedule, sigmas)}
        if self.sampler.accepts("downs"):
            return {**self.options, "downs": tcd_targets(schedule, sigmas, self.options.get("gamma", 0.3))}
        return dict(self.options)


def read_scheduler(class_name: str, config: JsonConfig) -> SamplerConfig:
    """What a scheduler class of diffusers does with this configuration, in our values.

    Args:
        class_name: such as "DPMSolverMultistepScheduler".
        config: the contents of its `scheduler_config.json`; what does not concern sampling is left alone.

    Raises:
        DaguerreError: a class or an option that has no counterpart here.
    """
    if class_name not in SCHEDULER_CLASSES:
        raise DaguerreError(
            f"The scheduler {class_name!r} has no counterpart here; these have: {', '.join(SCHEDULER_CLASSES)}.{nearest(class_name, SCHEDULER_CLASSES)}"
        )
    read, sampler = SCHEDULER_CLASSES[class_name]
    found = read(sampler, config)
    if config.get("thresholding", False):
        found = replace(found, clip=None, threshold=(config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)))
    return found


def _ddim_like(sampler: str, config: JsonConfig) -> SamplerConfig:
    """Classes that walk the whole t of the schedule: DDIM, DDPM, PNDM."""
    options: dict[str, Any] = {}
    to_zero = config.get("set_alpha_to_one", sampler != "pndm")
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", sampler != "pndm") else None
    if sampler == "ddpm":
        variances = {"fixed_small": "small", "fixed_large": "large"}
        options["variance"] = _one_of(config, "variance_type", "fixed_small", variances)
    if sampler == "pndm":
        sampler = "plms" if config.get("skip_prk_steps", False) else "pndm"
        options["mix"] = "v" if config.get("prediction_type") == "v_prediction" else "epsilon"
    spacing, spacing_options = _in_t(config, "leading", whole=True)
    return SamplerConfig(SAMPLERS[sampler], options, spacing, {**spacing_options, "final": "zero" if to_zero else "sigma_min"}, clip=clip)


def _k_diffusion_like(sampler: str, config: JsonConfig) -> SamplerConfig:
    """Classes that go between the t of the schedule: Euler, Heun, KDPM2, LMS and their kin."""
    outer = _in_t(config, "linspace")
    scale: InitialScale = "variance_preserving" if outer[0] == "leading" else "sigma_max"
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", False) else None
    final = {"final": _one_of(config, "final_sigmas_type", "zero", {"zero": "zero", "sigma_min": "sigma_min"})}
    inner = _in_sigma(config)
    if inner is None:
        return SamplerConfig(SAMPLERS[sampler], {}, outer[0], {**outer[1], **final}, scale=scale, clip=clip)
    return SamplerConfig(SAMPLERS[sampler], {}, inner[0], {**inner[1], **final}, outer, scale=scale, clip=clip)


def _solver(sampler: str, config: JsonConfig) -> SamplerConfig:
    """DPM-Solver, UniPC and DEIS: whole t for N + 1 steps of which the last is left out, or σ with t rounded."""
    order = _one_of(config, "solver_order", 2, {1: 1, 2: 2, 3: 3})
    options: dict[str, Any] = {}
    final = _one_of(config, "final_sigmas_type", "zero", {"zero": "zero", "sigma_min": "sigma_min"})
    if sampler == "dpmpp_2m":
        sampler, options = _multistep(order, config)
    elif sampler == "dpmpp_2s":
        _one_of(config, "algorithm_type", "dpmsolver++", {"dpmsolver++": True})
        options = {"order": order, "solver": _midpoint_or_heun(config)}
    elif sampler == "unipc":
        variant = _one_of(config, "solver_type", "bh2", {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"})
        options = {"order": order, "variant": variant, "lower_order_final": config.get("lower_order_final", True)}
    else:
        final = "sigma_min"
        options = {"order": order, "lower_order_final": config.get("lower_order_final", True)}
    spacing, spacing_options = _in_sigma(config) or _in_t(config, "linspace", drop=1, whole=True)
    roundings: dict[str, Rounding] = {"karras": "nearest", "exponential": "down", "beta": "down"}
    rounding: Rounding = "nearest" if config.get("use_lu_lambdas", False) else roundings.get(spacing, "none")
    return SamplerConfig(SAMPLERS[sampler], options, spacing, {**spacing_options, "final": final}, rounding=rounding)


def _lcm_like(sampler: str, config: JsonConfig) -> SamplerConfig:
    """LCM and TCD: N of the steps that the model was distilled on; a run of TCD ends at the least σ."""
    origin = {"origin_steps": config.get("original_inference_steps", 50)}
    return SamplerConfig(SAMPLERS[sampler], {}, "lcm", {**origin, "final": "sigma_min" if sampler == "tcd" else "zero"})


SCHEDULER_CLASSES: Mapping[str, tuple[Callable[[str, JsonConfig], SamplerConfig], str]] = {
    "DDIMScheduler": (_ddim_like, "euler"),
    "DDPMScheduler": (_ddim_like, "ddpm"),
    "PNDMScheduler": (_ddim_like, "pndm"),
    "EulerDiscreteScheduler": (_k_diffusion_like, "euler"),
    "EulerAncestralDiscreteScheduler": (_k_diffusion_like, "euler_a"),
    "HeunDiscreteScheduler": (_k_diffusion_like, "heun"),
    "KDPM2DiscreteScheduler": (_k_diffusion_like, "dpm2"),
    "KDPM2AncestralDiscreteScheduler": (_k_diffusion_like, "dpm2_a"),
    "LMSDiscreteScheduler": (_k_diffusion_like, "lms"),
    "DPMSolverSDEScheduler": (_k_diffusion_like, "dpmpp_sde"),
    "DPMSolverMultistepScheduler": (_solver, "dpmpp_2m"),
    "DPMSolverSinglestepScheduler": (_solver, "dpmpp_2s"),
    "UniPCMultistepScheduler": (_solver, "unipc"),
    "DEISMultistepScheduler": (_solver, "deis"),
    "LCMScheduler": (_lcm_like, "lcm"),
    "TCDScheduler": (_lcm_like, "tcd"),
}


def _multistep(order: int, config: JsonConfig) -> tuple[str, dict[str, Any]]:
    """The sampler of a DPMSolverMultistepScheduler and its options."""
    stochastic = _one_of(config, "algorithm_type", "dpmsolver++", {"dpmsolver++": False, "sde-dpmsolver++": True, "deis": False})
    if order == 1:
        return "euler_a" if stochastic else "euler", {}
    name = {2: "dpmpp_2m", 3: "dpmpp_3m"}[order] + ("_sde" if stochastic else "")
    return name, {"solver": _midpoint_or_heun(config), "lower_order_final": config.get("lower_order_final", True)}


def _midpoint_or_heun(config: JsonConfig) -> str:
    others = dict.fromkeys(("midpoint", "logrho", "bh1", "bh2"), "midpoint")
    return _one_of(config, "solver_type", "midpoint", {"heun": "heun", **others})


def _in_t(config: JsonConfig, default: str, *, drop: int = 0, whole: bool = False) -> tuple[str, dict[str, Any]]:
    """The spacing in t and its keywords."""
    options: dict[str, dict[str, Any]] = {
        "leading": {"steps_offset": config.get("steps_offset", 0), "drop": drop},
        "linspace": {"drop": drop, "whole": whole, "interpolation": "linear"},
        "trailing": {},
    }
    spacing = _one_of(config, "timestep_spacing", default, {name: name for name in options})
    return spacing, options[spacing]


def _in_sigma(config: JsonConfig) -> tuple[str, dict[str, Any]] | None:
    """The spacing in σ and its keywords, None where the spacing is one in t."""
    if config.get("use_karras_sigmas", False):
        return "karras", {}
    if config.get("use_exponential_sigmas", False) or config.get("use_lu_lambdas", False):
        return "exponential", {}
    if config.get("use_beta_sigmas", False):
        return "beta", {"over": "sigma"}
    return None


def _one_of(config: JsonConfig, key: str, default: str | int, allowed: Mapping[Any, Any]) -> Any:
    given = config.get(key) or default
    if given not in allowed:
        raise DaguerreError(f"A scheduler with {key} = {given!r} has no counterpart here; it is one of {', '.join(map(str, allowed))}.")
    return allowed[given]
