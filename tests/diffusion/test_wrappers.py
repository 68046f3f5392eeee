"""Wrappers of a denoiser: clipping, thresholding, inpainting, the LCM boundary condition; initial and final scaling."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from daguerre.diffusion import (
    SAMPLERS,
    Denoiser,
    Schedule,
    ScheduleConfig,
    clip_x0,
    computed_steps,
    dynamic_threshold,
    forecast_x0,
    get_sigmas,
    keep_epsilon,
    lcm_boundary,
    replace_known,
    scale_initial_noise,
    to_variance_preserving,
)
from tests.tolerance import assert_rounded

SCHEDULE = Schedule(ScheduleConfig())
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMA = torch.tensor(1.5, dtype=torch.float64)


def double(x: Tensor, sigma: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize("maximum", [1.0, 1.7, math.inf])
def test_dynamic_thresholding_equals_diffusers(maximum: float):
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=maximum)
    torch.testing.assert_close(dynamic_threshold(double, 0.9, maximum)(X, SIGMA), theirs._threshold_sample(2 * X), rtol=1e-6, atol=1e-6)


def test_clip_x0():
    torch.testing.assert_close(clip_x0(double, 0.5)(X, SIGMA), (2 * X).clamp(-0.5, 0.5))


def test_keep_epsilon_with_clipping():
    """A step of Euler is then clip(D) + σ_next·(x − D)/σ."""
    grid = get_sigmas(SCHEDULE, 6)
    denoise = keep_epsilon(clip_x0, lambda x, sigma: torch.tanh(x) * 1.4, grid)
    x = X * grid[0]
    for sigma, sigma_next, (found, _) in zip(grid, grid[1:], SAMPLERS["euler"](denoise, x, grid), strict=False):
        x0 = torch.tanh(x) * 1.4
        x = x0.clamp(-1, 1) + sigma_next * (x - x0) / sigma
        torch.testing.assert_close(found, x)


@pytest.mark.parametrize("name", ["euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc", "lms", "ddpm", "plms"])
def test_the_known_region_is_exact(name: str):
    known, mask = X.flip(0), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1
    grid = get_sigmas(SCHEDULE, 8)
    source = torch.Generator().manual_seed(1)
    denoise = replace_known(lambda x, sigma: torch.tanh(x), known, mask)
    x = known + grid[0] * torch.randn(X.shape, generator=source, dtype=torch.float64)
    *_, (x, _) = SAMPLERS[name](denoise, x, grid, noise=lambda x, *_: torch.randn(x.shape, generator=source, dtype=torch.float64))
    torch.testing.assert_close(x[..., 2:], known[..., 2:], rtol=0, atol=1e-12)
    assert (x[..., :2] - known[..., :2]).abs().mean() > 0.1


def test_deterministic_samplers_keep_the_noise_of_the_known_region():
    """x is known + σ·ε there at every σ, which other implementations set after every step."""
    eps, grid = X.roll(1, 0), get_sigmas(SCHEDULE, 8)
    denoise = replace_known(lambda x, sigma: torch.tanh(x), X, torch.zeros(1, 1, 4, 4))
    for sigma, (x, _) in zip(grid[1:], SAMPLERS["dpmpp_2m"](denoise, X + grid[0] * eps, grid), strict=True):
        torch.testing.assert_close(x, X + sigma * eps)


def test_a_soft_mask_blends():
    half = torch.full((1, 1, 4, 4), 0.25, dtype=torch.float64)
    torch.testing.assert_close(replace_known(double, torch.ones_like(X), half)(X, SIGMA), 0.75 + 0.25 * 2 * X)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_lcm_boundary_equals_diffusers(prediction):
    name = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    base = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = LCMScheduler(**base, prediction_type=name, clip_sample=False)
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[1]
    theirs = scheduler.step(torch.tanh(X), t, X).denoised
    denoise = Denoiser(lambda x, t, cond: torch.tanh(x), SCHEDULE, prediction)
    sigma = SCHEDULE.sigmas[t]
    ours = lcm_boundary(denoise, SCHEDULE)(X * (sigma**2 + 1).sqrt(), sigma)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_lcm_boundary_returns_x_at_the_least_noise():
    sigma = SCHEDULE.sigmas[0]
    torch.testing.assert_close(lcm_boundary(double, SCHEDULE)(X, sigma), to_variance_preserving(X, sigma))


def test_initial_and_final_scaling():
    sigma = SCHEDULE.sigmas[-1]
    torch.testing.assert_close(to_variance_preserving(scale_initial_noise(X, sigma), sigma), X)
    torch.testing.assert_close(scale_initial_noise(X, sigma, "sigma_max"), X * sigma)
    assert (scale_initial_noise(X, sigma) / scale_initial_noise(X, sigma, "sigma_max")).mean().item() == pytest.approx(1.00234, abs=1e-5)
    torch.testing.assert_close(scale_initial_noise(X, torch.tensor(math.inf)), X)
    torch.testing.assert_close(to_variance_preserving(X, torch.tensor(0.0)), X, rtol=0, atol=0)


def test_a_forecast_computes_both_ends_and_every_third_step():
    assert [sum(computed_steps(20, every)) for every in (2, 3)] == [13, 10]
    assert [step for step, computed in enumerate(computed_steps(20)) if computed] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 19]
    assert [step for step, computed in enumerate(computed_steps(20, jumps=[10])) if computed] == [0, 1, 2, 3, 6, 9, 10, 11, 12, 15, 18, 19]


def test_a_forecast_is_exact_if_x0_is_linear_in_the_logarithm_of_sigma():
    sigmas = torch.tensor([80.0, 30.0, 12.0, 6.0, 3.0, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05, 0.0], dtype=torch.float64)
    offset, slope = torch.randn(2, 2, 3, dtype=torch.float64)
    calls = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma.item())
        return offset + slope * sigma.log()

    computed = computed_steps(11)
    forecast = forecast_x0(denoise, sigmas, computed)
    for sigma in sigmas[:-1]:
        assert_rounded(forecast(torch.zeros(2, 3), sigma), offset + slope * sigma.log(), factor=100)
    assert calls == [sigma for sigma, own in zip(sigmas.tolist(), computed, strict=False) if own]
    assert len(calls) == sum(computed) < 11
