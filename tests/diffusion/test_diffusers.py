"""Every scheduler of diffusers for Stable Diffusion, step by step, with the same noise levels, noise and fake network."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from daguerre.diffusion import Denoiser, Prediction, SamplerConfig, Schedule, ScheduleConfig, read_scheduler

BASE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
EPS = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))

SD1_DDIM = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
SD1_PNDM = {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", SD1_DDIM),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": True}),
    ("DDIMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    ("DDPMScheduler", {"clip_sample": True}),
    ("PNDMScheduler", SD1_PNDM),
    ("PNDMScheduler", {"set_alpha_to_one": True, "steps_offset": 1}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverSDEScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "timestep_spacing": "leading", "steps_offset": 1}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ("DPMSolverSinglestepScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"solver_type": "heun", "use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun"}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "timestep_spacing": "trailing", "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"solver_order": 3}),
    ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True, "lower_order_final": False}),
    ("LCMScheduler", {"clip_sample": False}),
    ("LCMScheduler", {"clip_sample": True, "timestep_scaling": 2.0}),
    ("TCDScheduler", {}),
]
ZERO_SNR = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {}),
]
IN_SIGMA = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE")  # classes whose x is x0 + σ·ε; the others use √ᾱ·x0 + √(1−ᾱ)·ε


def network(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
    """Smooth in x and t, and not translation invariant."""
    return torch.tanh(0.7 * x + 0.2 * x.roll(1, -1)) * (0.6 + 0.4 * torch.sin(t / 300).reshape(-1, 1, 1, 1).to(x.dtype))


def set_up(name: str, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    if name == "DPMSolverSDEScheduler":  # its noise needs another library; the test provides the noise
        monkeypatch.setitem(sys.modules, "torchsde", SimpleNamespace())
        module = import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    else:
        module = diffusers
    scheduler = getattr(module, name)(**{**BASE, **config})
    scheduler.set_timesteps(steps)
    if name == "DEISMultistepScheduler":  # its coefficients are differences of nearly equal numbers; in float32 they have four digits
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def reference_sigmas(name: str, scheduler: Any, config: dict[str, Any]) -> Tensor:
    """The σ that a scheduler visits, (N + 1,) float64."""
    if name not in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler"):
        return scheduler.sigmas.double().unique_consecutive()
    t = scheduler.timesteps
    if name == "PNDMScheduler":
        t = torch.from_numpy(np.unique(scheduler._timesteps)[::-1].astype(np.int64))
    alphas_cumprod = scheduler.alphas_cumprod.double()
    to_zero = name != "TCDScheduler" and config.get("set_alpha_to_one", name != "PNDMScheduler")
    alphas_cumprod = torch.cat([alphas_cumprod[t], torch.ones(1) if to_zero else alphas_cumprod[:1]])
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt().unique_consecutive()


def reference_steps(name: str, scheduler: Any, grid: Tensor, noises: Callable[[], Tensor]) -> list[Tensor]:
    """x = x0 + σ·ε after every complete step of a scheduler of diffusers."""
    generator = torch.Generator().manual_seed(7)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    scheduler.noise_sampler = lambda sigma, sigma_next: noises()
    x = EPS * scheduler.init_noise_sigma
    after = []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.float().expand(len(x)))
        x = scheduler.step(output, t, x, **({"generator": generator} if takes_generator else {})).prev_sample
        after.append(x.double())
    if name == "PNDMScheduler":
        after = after[3:12:4] + after[12:] if not scheduler.config.skip_prk_steps else after[1:]
    elif len(after) > len(grid):
        after = after[1::2] + after[-1:]  # two evaluations a step, and one in the last
    return after if name.startswith(IN_SIGMA) else [x * (s**2 + 1).sqrt() for x, s in zip(after, grid[1:], strict=False)]


def our_steps(sampling: SamplerConfig, schedule: Schedule, grid: Tensor, prediction: str, noises: Callable[[], Tensor]) -> list[Tensor]:
    denoise = Denoiser(network, schedule, PREDICTIONS[prediction], rounding=sampling.rounding)
    denoise = sampling.wrap_denoiser(denoise, schedule, grid)
    x = EPS.double()
    if grid[0].isfinite():
        x = x * (grid[0] if sampling.initial_scale == "sigma_max" else (grid[0] ** 2 + 1).sqrt())
    options = sampling.sampler_options(schedule, grid)
    return [x for x, _x0 in sampling.sampler(denoise, x, grid, noise=lambda *_: noises(), **options)]


def noise_source() -> Callable[[], Tensor]:
    source = torch.Generator().manual_seed(7)
    return lambda: torch.randn(EPS.shape, generator=source)


def max_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative difference of any step."""
    assert len(theirs) - 1 <= len(ours) <= len(theirs)
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=False))


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "config"), CASES)
def test_every_step_equals_diffusers(name: str, config: dict[str, Any], prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch):
    config = {**config, "prediction_type": prediction}
    scheduler, schedule = set_up(name, config, steps, monkeypatch), Schedule(ScheduleConfig())
    sampling = read_scheduler(name, config)
    grid = reference_sigmas(name, scheduler, config)
    torch.testing.assert_close(sampling.sigmas(schedule, steps), grid, rtol=5e-5, atol=0)  # 1 − ᾱ in float32 has no more digits
    theirs = reference_steps(name, scheduler, grid, noise_source())
    assert max_error(our_steps(sampling, schedule, grid, prediction, noise_source()), theirs) < 1e-5


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize(("name", "config"), ZERO_SNR)
def test_zero_terminal_snr_equals_diffusers(name: str, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch):
    """DDIM and DDPM have ᾱ_T = 0, as with terminal="exact"; the others cap it, as `get_sigmas` does by default."""
    config = {**config, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler, schedule = set_up(name, config, steps, monkeypatch), Schedule(ScheduleConfig(zero_terminal_snr=True))
    sampling = read_scheduler(name, config)
    grid = reference_sigmas(name, scheduler, config)
    assert grid[0].isinf() == (name in ("DDIMScheduler", "DDPMScheduler"))
    # The reference computes ᾱ in float32, which is inaccurate near zero terminal SNR.
    torch.testing.assert_close(sampling.sigmas(schedule, steps)[1:], grid[1:], rtol=1e-4, atol=0)
    theirs = reference_steps(name, scheduler, grid, noise_source())
    # From 4096·ε to x₁, Euler in float32 subtracts numbers of about 4096, with an error of 4096·2⁻²⁴.
    bound = 4096 * 2**-24 / grid[1].item() if name.startswith("Euler") else 1e-5
    assert max_error(our_steps(sampling, schedule, grid, "v_prediction", noise_source()), theirs) < bound


def both(
    name: str, config: dict[str, Any], prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Schedule, SamplerConfig, Tensor]:
    config = {**config, "prediction_type": prediction}
    scheduler = set_up(name, config, steps, monkeypatch)
    return scheduler, Schedule(ScheduleConfig()), read_scheduler(name, config), reference_sigmas(name, scheduler, config)


class TestIntentionalDifferences:
    """Each difference from diffusers, and how to reproduce it."""

    def test_kdpm2_rounds_t_at_whole_steps_only(self, monkeypatch: pytest.MonkeyPatch):
        name = "KDPM2DiscreteScheduler"
        scheduler, schedule, sampling, grid = both(name, {"use_karras_sigmas": True}, "v_prediction", 20, monkeypatch)
        theirs = reference_steps(name, scheduler, grid, noise_source())
        assert 1e-5 < max_error(our_steps(sampling, schedule, grid, "v_prediction", noise_source()), theirs) < 1e-3
        between, at_grid = Denoiser(network, schedule, "v"), Denoiser(network, schedule, "v", rounding="nearest")
        mixed = sampling.sampler(lambda x, s: (at_grid if s in grid else between)(x, s), EPS.double() * grid[0], grid)
        assert max_error([x for x, _ in mixed], theirs) < 1e-5

    def test_dpm_solver_truncates_the_first_t(self, monkeypatch: pytest.MonkeyPatch):
        """DPM-Solver truncates t; with the exponential spacing its first t, 999 up to rounding errors, becomes 998."""
        scheduler, schedule, sampling, grid = both(
            "DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, "epsilon", 20, monkeypatch
        )
        assert scheduler.timesteps[0] == 998
        theirs = reference_steps("DPMSolverMultistepScheduler", scheduler, grid, noise_source())
        assert max_error(our_steps(sampling, schedule, grid, "epsilon", noise_source()), theirs) > 1e-5
        just_below = grid.clone()
        just_below[0] *= 1 - 1e-5
        denoiser = Denoiser(network, schedule, "epsilon", rounding="down")
        start = EPS.double() * (grid[0] ** 2 + 1).sqrt()
        ours = sampling.sampler(lambda x, s: denoiser(x, torch.minimum(s, just_below[0])), start, grid)
        assert max_error([x for x, _ in ours], theirs) < 3e-5

    def test_ddim_steps_wrongly_if_n_does_not_divide_t(self, monkeypatch: pytest.MonkeyPatch):
        """diffusers' DDIM always steps by ⌊T/N⌋, even if the next t differs; ours goes to the next σ."""
        config = {"clip_sample": False, "timestep_spacing": "trailing"}
        scheduler, schedule, sampling, grid = both("DDIMScheduler", config, "epsilon", 7, monkeypatch)
        theirs = reference_steps("DDIMScheduler", scheduler, grid, noise_source())
        assert max_error(our_steps(sampling, schedule, grid, "epsilon", noise_source()), theirs) > 1e-4
        stepped_back = schedule.t_to_sigma((scheduler.timesteps - 1000 // 7).clamp(min=0))
        t, x, after = scheduler.timesteps, EPS.double() * (grid[0] ** 2 + 1).sqrt(), []
        for i, sigma in enumerate(grid[:-1]):  # diffusers' steps with our sampler: each ends at t − ⌊T/N⌋ but continues as if at the next t
            end = stepped_back[i] if t[i] >= 1000 // 7 else torch.zeros((), dtype=torch.float64)
            ((x, _),) = sampling.sampler(Denoiser(network, schedule, "epsilon"), x, torch.stack([sigma, end]))
            x = x / (end**2 + 1).sqrt() * (grid[i + 1] ** 2 + 1).sqrt()
            after.append(x)
        assert max_error(after, theirs) < 1e-5

    @pytest.mark.parametrize("steps", [5, 20])
    def test_the_third_order_sde_of_diffusers_has_a_wrong_sign(self, steps: int, monkeypatch: pytest.MonkeyPatch):
        """sde-dpmsolver++ of order 3: the weight of the second difference tends to −1 for small steps instead
        of 0. Ours equals k-diffusion, where it tends to 0."""
        config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "use_karras_sigmas": True}
        scheduler, schedule, sampling, grid = both("DPMSolverMultistepScheduler", config, "epsilon", steps, monkeypatch)
        theirs = reference_steps("DPMSolverMultistepScheduler", scheduler, grid, noise_source())
        ours = our_steps(sampling, schedule, grid, "epsilon", noise_source())
        assert max_error(ours[:2], theirs[:2] + theirs[2:3]) < 1e-5
        assert max_error(ours, theirs) > 1e-3

    def test_edm_models_use_euler_with_another_preconditioning(self):
        """EDMEulerScheduler is `euler` for networks with the preconditioning of Karras et al. 2022, table 1."""
        scheduler = diffusers.EDMEulerScheduler()
        scheduler.set_timesteps(20)
        x = EPS * scheduler.init_noise_sigma
        theirs = []
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t.expand(2)), t, x).prev_sample
            theirs.append(x.double())

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            c_in = 1 / (sigma**2 + 0.25).sqrt()
            return 0.25 * c_in**2 * x + sigma * 0.5 * c_in * network(c_in * x, (sigma.log() / 4).expand(2))

        grid = scheduler.sigmas.double()
        sampler = read_scheduler("EulerDiscreteScheduler", {}).sampler
        assert max_error([x for x, _ in sampler(denoise, EPS.double() * (80.0**2 + 1) ** 0.5, grid)], theirs) < 1e-5
