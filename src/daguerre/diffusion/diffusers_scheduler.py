"""Read the scheduler configurations of diffusers (`scheduler/scheduler_config.json`).

Such a file combines the noise schedule, the prediction type, the spacing and the sampler. `read_scheduler` returns the sampling part as a
`SamplerConfig`; missing values get the defaults of the scheduler class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from daguerre.diffusion.denoiser import Denoise, InitialScale, Rounding
from daguerre.diffusion.samplers.registry import SAMPLERS, Sampler
from daguerre.diffusion.schedule import Schedule
from daguerre.diffusion.spacing import get_sigmas, midpoints, tcd_targets
from daguerre.diffusion.wrappers import clip_x0, dynamic_threshold, keep_epsilon, lcm_boundary
from daguerre.errors import DaguerreError, nearest

JsonConfig = Mapping[str, Any]


@dataclass(frozen=True)
class SamplerConfig:
    """The sampling settings that a scheduler configuration of diffusers specifies.

    options: keyword arguments of the sampler.
    spacing_options: keyword arguments of `get_sigmas`.
    sigma_range: for a spacing in σ, the spacing (with its options) that gives the first and the last σ; None for the schedule's own range.
    rounding: of t, see `Denoiser`.
    initial_scale: see `scale_initial_noise`.
    clip: clip x0 to ±clip.
    threshold: (quantile, maximum) of `dynamic_threshold`.
    lcm_scaling: the factor on t in `lcm_boundary`; None if the model is not a latent consistency model.
    """

    sampler: Sampler
    options: JsonConfig = field(default_factory=dict)
    spacing: str = "linspace"
    spacing_options: JsonConfig = field(default_factory=dict)
    sigma_range: tuple[str, JsonConfig] | None = None
    rounding: Rounding = "none"
    initial_scale: InitialScale = "variance_preserving"
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    lcm_scaling: float | None = None

    def sigmas(self, schedule: Schedule, steps: int) -> Tensor:
        """The noise levels of a run, (steps + 1,) or (steps,), as `get_sigmas` returns them."""
        options = dict(self.spacing_options)
        if self.sigma_range is not None:
            outer = get_sigmas(schedule, steps, self.sigma_range[0], **self.sigma_range[1])
            options |= {"sigma_max": outer[0].item(), "sigma_min": outer[-2].item()}
        return get_sigmas(schedule, steps, self.spacing, **options)

    def sampler_options(self, schedule: Schedule, sigmas: Tensor) -> dict[str, Any]:
        """The keyword arguments of the sampler for these noise levels: `options`, and the inner σ of each step for PNDM and TCD."""
        if self.sampler.accepts("midpoints"):
            return {**self.options, "midpoints": midpoints(schedule, sigmas)}
        if self.sampler.accepts("targets"):
            return {**self.options, "targets": tcd_targets(schedule, sigmas, self.options.get("gamma", 0.3))}
        return dict(self.options)

    def wrap_denoiser(self, denoise: Denoise, schedule: Schedule, sigmas: Tensor) -> Denoise:
        """Apply what the configuration does to x0: the LCM boundary condition, clipping, or dynamic thresholding.

        DDIM (`euler`) clips x0 but takes its step along the ε of the unclipped x0, as diffusers does by default.
        """
        if self.threshold is not None:
            limit = partial(dynamic_threshold, quantile=self.threshold[0], maximum=self.threshold[1])
        elif self.clip is not None:
            limit = partial(clip_x0, limit=self.clip)
        else:
            limit = None
        if limit is not None:
            eta = self.options.get("eta", 0.0)
            denoise = keep_epsilon(limit, denoise, sigmas, eta=eta) if self.sampler.name == "euler" else limit(denoise)
        return denoise if self.lcm_scaling is None else lcm_boundary(denoise, schedule, scaling=self.lcm_scaling)


def read_scheduler(class_name: str, config: JsonConfig) -> SamplerConfig:
    """The sampler settings that reproduce a scheduler of diffusers.

    Args:
        class_name: such as "DPMSolverMultistepScheduler".
        config: the contents of its `scheduler_config.json`; keys that do not concern sampling are ignored. Several classes clip x0 unless
            `clip_sample` is false; diffusers' pipelines for latent models set it to false, so callers must do the same for these models.

    Raises:
        DaguerreError: the class or the value of an option is not supported.
    """
    if class_name not in SCHEDULER_CLASSES:
        names = ", ".join(SCHEDULER_CLASSES)
        raise DaguerreError(f"The scheduler {class_name!r} is not supported; use one of {names}.{nearest(class_name, SCHEDULER_CLASSES)}")
    reader, sampler = SCHEDULER_CLASSES[class_name]
    settings = reader(sampler, config)
    if config.get("thresholding", False):
        settings = replace(
            settings, clip=None, threshold=(config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0))
        )
    return settings


def _ddim_like(sampler: str, config: JsonConfig) -> SamplerConfig:
    """Classes that visit integer t of the schedule: DDIM, DDPM, PNDM."""
    options: dict[str, Any] = {}
    to_zero = config.get("set_alpha_to_one", sampler != "pndm")
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", sampler != "pndm") else None
    if sampler == "ddpm":
        variances = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "learned_range": "learned"}
        options["variance"] = _one_of(config, "variance_type", "fixed_small", variances)
    if sampler == "pndm":
        sampler = "plms" if config.get("skip_prk_steps", False) else "pndm_prk"
        options["mix"] = "v" if config.get("prediction_type") == "v_prediction" else "epsilon"
    spacing, spacing_options = _spacing_in_t(config, "leading", round_t=True)
    return SamplerConfig(SAMPLERS[sampler], options, spacing, {**spacing_options, "final": "zero" if to_zero else "sigma_min"}, clip=clip)


def _k_diffusion_like(sampler: str, config: JsonConfig) -> SamplerConfig:
    """Classes that interpolate between the t of the schedule: Euler, Heun, KDPM2, LMS and the like."""
    outer = _spacing_in_t(config, "linspace")
    scale: InitialScale = "variance_preserving" if outer[0] == "leading" else "sigma_max"
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", False) else None
    final = {"final": _one_of(config, "final_sigmas_type", "zero", {"zero": "zero", "sigma_min": "sigma_min"})}
    inner = _spacing_in_sigma(config)
    if inner is None:
        return SamplerConfig(SAMPLERS[sampler], {}, outer[0], {**outer[1], **final}, initial_scale=scale, clip=clip)
    return SamplerConfig(SAMPLERS[sampler], {}, inner[0], {**inner[1], **final}, outer, initial_scale=scale, clip=clip)


def _dpm_solver_like(sampler: str, config: JsonConfig) -> SamplerConfig:
    """DPM-Solver, UniPC and DEIS: integer t for N + 1 steps without the last one, or a spacing in σ with t rounded."""
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
    spacing, spacing_options = _spacing_in_sigma(config) or _spacing_in_t(config, "linspace", drop=1, round_t=True)
    roundings: dict[str, Rounding] = {"karras": "nearest", "exponential": "down", "beta": "down"}
    rounding: Rounding = "nearest" if config.get("use_lu_lambdas", False) else roundings.get(spacing, "none")
    return SamplerConfig(SAMPLERS[sampler], options, spacing, {**spacing_options, "final": final}, rounding=rounding)


def _lcm_like(sampler: str, config: JsonConfig) -> SamplerConfig:
    """LCM and TCD: N of the steps that the model was distilled on. TCD ends at the schedule's least σ."""
    origin = {"origin_steps": config.get("original_inference_steps", 50)}
    if sampler == "tcd":
        return SamplerConfig(SAMPLERS[sampler], {}, "lcm", {**origin, "final": "sigma_min"})
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample", False) else None
    scaling = config.get("timestep_scaling", 10.0)
    return SamplerConfig(SAMPLERS[sampler], {}, "lcm", {**origin, "final": "zero"}, clip=clip, lcm_scaling=scaling)


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
    "DPMSolverMultistepScheduler": (_dpm_solver_like, "dpmpp_2m"),
    "DPMSolverSinglestepScheduler": (_dpm_solver_like, "dpmpp_2s"),
    "UniPCMultistepScheduler": (_dpm_solver_like, "unipc"),
    "DEISMultistepScheduler": (_dpm_solver_like, "deis"),
    "LCMScheduler": (_lcm_like, "lcm"),
    "TCDScheduler": (_lcm_like, "tcd"),
}


def _multistep(order: int, config: JsonConfig) -> tuple[str, dict[str, Any]]:
    """The name and options of the sampler of a DPMSolverMultistepScheduler."""
    stochastic = _one_of(config, "algorithm_type", "dpmsolver++", {"dpmsolver++": False, "sde-dpmsolver++": True, "deis": False})
    if order == 1:
        return "euler_a" if stochastic else "euler", {}
    name = {2: "dpmpp_2m", 3: "dpmpp_3m"}[order] + ("_sde" if stochastic else "")
    return name, {"solver": _midpoint_or_heun(config), "lower_order_final": config.get("lower_order_final", True)}


def _midpoint_or_heun(config: JsonConfig) -> str:
    others = dict.fromkeys(("midpoint", "logrho", "bh1", "bh2"), "midpoint")
    return _one_of(config, "solver_type", "midpoint", {"heun": "heun", **others})


def _spacing_in_t(config: JsonConfig, default: str, *, drop: int = 0, round_t: bool = False) -> tuple[str, dict[str, Any]]:
    """The spacing in t and its keyword arguments."""
    options: dict[str, dict[str, Any]] = {
        "leading": {"steps_offset": config.get("steps_offset", 0), "drop": drop},
        "linspace": {"drop": drop, "round_t": round_t, "interpolation": "linear"},
        "trailing": {},
    }
    spacing = _one_of(config, "timestep_spacing", default, {name: name for name in options})
    return spacing, options[spacing]


def _spacing_in_sigma(config: JsonConfig) -> tuple[str, dict[str, Any]] | None:
    """The spacing in σ and its keyword arguments; None if the configuration uses a spacing in t."""
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
        raise DaguerreError(f"A scheduler with {key} = {given!r} is not supported; use one of {', '.join(map(str, allowed))}.")
    return allowed[given]
