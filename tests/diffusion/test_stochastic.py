"""Stochastic samplers reproduce a mixture's weights, means and covariances within the sampling error."""

import math

import pytest
import torch
from torch import Tensor

from daguerre.diffusion import (
    SAMPLERS,
    Schedule,
    ScheduleConfig,
    brownian_noise,
    gaussian_noise,
    generators,
    get_sigmas,
    midpoints,
    scale_initial_noise,
    two_gaussians,
)

MIXTURE = two_gaussians()
SCHEDULE = Schedule(ScheduleConfig())
COUNT = 12_000
STOCHASTIC = [name for name, sampler in SAMPLERS.items() if sampler.stochastic and name not in ("lcm", "tcd")]


def one_generator_for_all(seed: int):
    """Independent noise from one generator, for many points."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x, sigma, sigma_next: torch.randn(x.shape, generator=generator, dtype=torch.float64)


def sample_points(name: str, steps: int, seed: int = 1, **options: object) -> Tensor:
    grid = get_sigmas(SCHEDULE, steps, "karras")
    x = one_generator_for_all(seed)(torch.empty(COUNT, 2), grid, grid) * (grid[0] ** 2 + 1).sqrt()
    *_, (x, _x0) = SAMPLERS[name](MIXTURE.denoise, x, grid, noise=one_generator_for_all(seed + 1), **options)
    return x


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mean and covariance of each component; points count with their posterior weights, so the estimates are unbiased."""
    offset = x[:, None] - MIXTURE.means
    r = (MIXTURE.weights.log() - 2 * MIXTURE.stds.log() - offset.square().sum(-1) / (2 * MIXTURE.stds**2)).softmax(-1)  # (N, K)
    weight = r.mean(0)
    mean = torch.einsum("nk,nd->kd", r, x) / (len(x) * weight[:, None])
    centred = x[:, None] - mean
    return weight, mean, torch.einsum("nk,nkd,nke->kde", r, centred, centred) / (len(x) * weight[:, None, None])


def distance(x: Tensor) -> float:
    """The largest difference of a weight, mean or covariance from the truth."""
    covariances = MIXTURE.stds[:, None, None] ** 2 * torch.eye(2, dtype=torch.float64)
    truth = MIXTURE.weights, MIXTURE.means, covariances
    return max((found - true).abs().max().item() for found, true in zip(moments(x), truth, strict=True))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reproduce_the_mixture(name: str):
    """The bias falls with more steps; with 100 it is about the sampling error of 12,000 points, 0.02."""
    few, many = distance(sample_points(name, 25)), distance(sample_points(name, 100))
    assert many < 0.03
    assert few < 0.1
    assert many < few + 0.02


def test_the_distance_detects_a_wrong_distribution():
    """Euler-ancestral with too little noise has a larger distance."""
    grid = get_sigmas(SCHEDULE, 40, "karras")
    x = torch.randn(COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * grid[0]
    *_, (x, _) = SAMPLERS["euler_a"](MIXTURE.denoise, x, grid, noise=lambda x, *_: 0.7 * torch.randn_like(x))
    assert distance(x) > 0.05


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_any_eta_gives_the_same_distribution(eta: float):
    assert distance(sample_points("euler", 100, eta=eta)) < 0.04
    assert distance(sample_points("dpmpp_2m", 100, eta=eta)) < 0.04


@pytest.mark.parametrize("steps", [2, 8])
@pytest.mark.parametrize(("name", "options"), [("lcm", {}), ("tcd", {"gamma": 0.3}), ("tcd", {"gamma": 1.0}), ("euler", {})])
def test_the_exact_consistency_function(name: str, options: dict, steps: int):
    """For N(μ, s²) the trajectory from x at σ ends at μ + (x − μ)·s/√(s² + σ²); with this D, LCM is exact for any number of steps.

    TCD moves part of the way along a straight line, but the trajectory is curved, so its standard deviation is exact only for γ = 1.
    """
    mu, s = 0.7, 0.5
    grid = get_sigmas(SCHEDULE, steps, "lcm")
    x = mu + (grid[0] ** 2 + s**2).sqrt() * one_generator_for_all(3)(torch.empty(COUNT, 1), grid, grid)
    *_, (x, _) = SAMPLERS[name](
        lambda x, sigma: mu + (x - mu) * s / (s**2 + sigma**2).sqrt(), x, grid, noise=one_generator_for_all(4), **options
    )
    if name == "lcm" or options == {"gamma": 1.0}:
        assert x.mean().item() == pytest.approx(mu, abs=0.01)
        assert x.std().item() == pytest.approx(s, abs=0.01)
    else:
        assert abs(x.std().item() - s) > 0.03


def test_tcd_is_euler_at_gamma_0_and_lcm_at_gamma_1():
    grid = get_sigmas(SCHEDULE, 6, "lcm")
    x = grid[0] * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gamma, other in ((0.0, "euler"), (1.0, "lcm")):
        runs = [
            torch.stack([x for x, _ in SAMPLERS[name](MIXTURE.denoise, x, grid, noise=one_generator_for_all(5), **options)])
            for name, options in (("tcd", {"gamma": gamma}), (other, {}))
        ]
        torch.testing.assert_close(*runs)


def test_ddpm_with_the_small_variance_is_euler_ancestral():
    grid = get_sigmas(SCHEDULE, 9)
    x = grid[0] * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    runs = [torch.stack([x for x, _ in SAMPLERS[n](MIXTURE.denoise, x, grid, noise=one_generator_for_all(5))]) for n in ("ddpm", "euler_a")]
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ddim_inversion", "lcm", "tcd")])
def test_zero_terminal_snr_exact_and_capped_agree(name: str):
    """From σ = inf and from 4096 both reproduce the distribution; deterministic samplers give nearly equal points."""
    schedule = Schedule(ScheduleConfig(zero_terminal_snr=True))
    generator = torch.Generator().manual_seed(0)
    eps, fresh = torch.randn(4000, 2, dtype=torch.float64, generator=generator), one_generator_for_all(5)
    ends = []
    for terminal in ("exact", "capped"):
        grid = get_sigmas(schedule, 50, terminal=terminal)
        options = {"midpoints": midpoints(schedule, grid)} if SAMPLERS[name].accepts("midpoints") else {}
        *_, (x, _) = SAMPLERS[name](MIXTURE.denoise, scale_initial_noise(eps, grid[0]), grid, noise=fresh, **options)
        assert distance(x) < 0.12
        ends.append(x)
    if not SAMPLERS[name].stochastic:
        assert (ends[0] - ends[1]).norm(dim=1).mean() < 0.1


class TestNoise:
    X = torch.zeros(3, 4, 8, 8)

    def test_an_image_s_noise_does_not_depend_on_its_batch(self):
        for kind in (gaussian_noise, brownian_noise):
            together = kind(generators([5, 6, 7]))(self.X, torch.tensor(2.0), torch.tensor(1.0))
            alone = kind(generators([6]))(self.X[:1], torch.tensor(2.0), torch.tensor(1.0))
            torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)
            assert not torch.equal(together[0], together[1])

    def test_brownian_increments_are_standard_normal(self):
        x = torch.zeros(1, 200, 200)
        noise = brownian_noise(generators([0]))
        for high, low in [(14.6, 0.03), (math.inf, 7.0), (1.0, 0.99), (0.05, 0.03)]:
            sample = noise(x, torch.tensor(high), torch.tensor(low))
            assert sample.mean().item() == pytest.approx(0, abs=0.02)
            assert sample.std().item() == pytest.approx(1, abs=0.02)

    def test_brownian_increments_add_up(self):
        """W(c) − W(a) = (W(b) − W(a)) + (W(c) − W(b)), so overlapping steps are consistent; adjacent increments are independent."""
        x, (a, b, c) = torch.zeros(1, 300, 300), (torch.tensor(each) for each in (5.0, 2.0, 0.1))
        noise = brownian_noise(generators([1]))
        first, second, both = noise(x, a, b), noise(x, b, c), noise(x, a, c)
        tau = [math.log(5 / 2), math.log(2 / 0.1)]
        torch.testing.assert_close(both * sum(tau) ** 0.5, first * tau[0] ** 0.5 + second * tau[1] ** 0.5, rtol=1e-5, atol=1e-5)
        assert (first * second).mean().abs() < 0.02

    def test_the_path_does_not_depend_on_earlier_calls(self):
        x = torch.zeros(1, 4, 4)
        direct = brownian_noise(generators([2]))(x, torch.tensor(3.0), torch.tensor(1.0))
        used = brownian_noise(generators([2]))
        used(x, torch.tensor(9.0), torch.tensor(0.3))
        torch.testing.assert_close(used(x, torch.tensor(3.0), torch.tensor(1.0)), direct, rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
    def test_more_steps_converge_to_the_same_point(self, name: str):
        """On one Brownian path the end point converges with more steps; with independent noise it would not."""
        seeds = list(range(8))
        ends = []
        for steps in (40, 80):
            grid = get_sigmas(SCHEDULE, steps, "exponential")
            rngs = generators(seeds)
            x = grid[0] * torch.stack([torch.randn(2, generator=rng, dtype=torch.float64) for rng in rngs])
            *_, (x, _) = SAMPLERS[name](MIXTURE.denoise, x, grid, noise=SAMPLERS[name].noise(rngs))
            ends.append(x)
        assert (ends[0] - ends[1]).norm(dim=1).median() < 0.1, ends
