"""The measured order of every deterministic sampler: by how much the error against the exact trajectory falls with twice the steps."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from daguerre.diffusion import SAMPLERS, two_gaussians

FIRST, LAST = 14.6, 0.03
MIXTURE = two_gaussians()
START = FIRST * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def smooth(steps: int, rho: float, last: float = LAST) -> Tensor:
    """Even in σ^(1/ρ); ρ = inf is even in ln σ."""
    if rho == math.inf:
        return torch.linspace(math.log(FIRST), math.log(last), steps + 1, dtype=torch.float64).exp()
    return torch.linspace(FIRST ** (1 / rho), last ** (1 / rho), steps + 1, dtype=torch.float64) ** rho


@cache
def dense_solution(rho: float, last: float) -> Tensor:
    return MIXTURE.trajectory(START, smooth(192, rho, last), substeps=6)


def solution(steps: int, rho: float, last: float = LAST) -> Tensor:
    """The exact trajectory at the noise levels of `smooth`, which are a subset of the finest ones."""
    return dense_solution(rho, last)[:: 192 // steps]


def error(name: str, steps: int, rho: float, *, seeded: int = 0, last: float = LAST, **options: object) -> float:
    """The error of the end point. The first `seeded` points of the run are set to the exact trajectory."""
    grid, truth = smooth(steps, rho, last), solution(steps, rho, last)
    exact = dict(zip(grid[:seeded].tolist(), truth, strict=False))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if sigma.item() in exact:
            x.copy_(exact[sigma.item()])
        return MIXTURE.denoise(x, sigma)

    *_, (x, _x0) = SAMPLERS[name](denoise, START.clone(), grid, **options)
    return (x - truth[-1]).abs().max().item()


def measured_order(name: str, rho: float, steps: int = 96, **options: object) -> float:
    return math.log2(error(name, steps, rho, **options) / error(name, 2 * steps, rho, **options))


SINGLE_STEP = [("euler", 1), ("heun", 2), ("dpm2", 2), ("dpm_solver_2s", 2), ("dpm_solver_3s", 3), ("dpmpp_2s", 2), ("dpmpp_3s", 3)]
MULTISTEP = [("dpmpp_2m", 2, {}), ("dpmpp_2m", 2, {"solver": "heun"}), ("dpmpp_3m", 2, {}), ("dpmpp_3m", 3, {"exact": True})]
MULTISTEP += [("unipc", 3, {"lower_order_final": False}), ("unipc_bh1", 3, {"lower_order_final": False})]
MULTISTEP += [("deis", 2, {"order": 2}), ("deis", 3, {})]
MULTISTEP += [("lms", 2, {"order": 2}), ("lms", 3, {"order": 3}), ("lms", 4, {}), ("plms", 2, {}), ("pndm_prk", 2, {}), ("ipndm", 2, {})]


@pytest.mark.parametrize("rho", [7, math.inf])
@pytest.mark.parametrize(("name", "order"), SINGLE_STEP)
def test_single_step_samplers(name: str, order: int, rho: float):
    assert measured_order(name, rho) == pytest.approx(order, abs=0.25)
    assert SAMPLERS[name].order == order


@pytest.mark.parametrize("rho", [7, math.inf])
@pytest.mark.parametrize(("name", "order", "options"), MULTISTEP)
def test_multistep_samplers_with_exact_history(name: str, order: int, options: dict, rho: float):
    assert measured_order(name, rho, seeded=5, **options) == pytest.approx(order, abs=0.35)


def test_unipc_gains_one_order_by_its_corrector():
    assert measured_order("unipc", math.inf, seeded=5, order=3, lower_order_final=False) == pytest.approx(4, abs=0.35)


@pytest.mark.parametrize("name", ["plms", "pndm_prk", "ipndm"])
def test_adams_bashforth_is_of_order_four_only_on_an_even_grid(name: str):
    assert measured_order(name, 1, seeded=5, last=4.0) == pytest.approx(4, abs=0.35)
    assert measured_order(name, 7, seeded=5, last=4.0) == pytest.approx(2, abs=0.35)


def test_the_stated_orders_are_tested():
    multistep = {name: order for name, order, options in MULTISTEP if not options or "lower_order_final" in options}
    stated = {name: sampler.order for name, sampler in SAMPLERS.items() if not sampler.stochastic and name != "ddim_inversion"}
    assert stated == {**dict(SINGLE_STEP), **multistep}


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "deis", "lms", "ipndm"])
def test_without_history_the_first_step_is_of_order_one(name: str):
    """Its local error is of order 2 in h, which limits the order of the whole run."""
    errors = []
    for steps in (96, 192):
        x, _x0 = next(SAMPLERS[name](MIXTURE.denoise, START, smooth(steps, 7)))
        errors.append((x - solution(steps, 7)[1]).abs().max())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_a_block_of_two_steps_is_the_single_step_solver():
    """On a grid with the geometric mean inserted in every step, DPM-Solver++(2S) equals the method that evaluates there itself."""
    grid = smooth(12, 7)
    inner = torch.stack([grid[:-1], (grid[:-1] * grid[1:]).sqrt()], dim=1).flatten()
    *_, (inside, _) = SAMPLERS["dpmpp_2s_a"](MIXTURE.denoise, START, grid, eta=0.0, noise=lambda *_: torch.zeros(()))
    *_, (between, _) = SAMPLERS["dpmpp_2s"](MIXTURE.denoise, START, torch.cat([inner, grid[-1:]]))
    torch.testing.assert_close(inside, between, rtol=1e-12, atol=1e-12)


def test_higher_order_samplers_beat_euler_at_equal_evaluations():
    """At 24 evaluations every sampler of order 2 and more beats Euler."""
    euler = error("euler", 24, 7)
    for name, sampler in SAMPLERS.items():
        if not sampler.stochastic and name not in ("euler", "ddim_inversion"):
            assert error(name, 24 // sampler.evaluations, 7) < euler, name


def test_eta_zero_needs_no_noise_and_equals_the_deterministic_sampler():
    grid = smooth(10, 7)
    for stochastic, deterministic in [("dpmpp_2m_sde", "dpmpp_2m"), ("dpmpp_3m_sde", "dpmpp_3m"), ("euler_a", "euler"), ("dpm2_a", "dpm2")]:
        silent = [x for x, _ in SAMPLERS[stochastic](MIXTURE.denoise, START, grid, eta=0.0, noise=lambda *_: 1 / 0)]
        plain = [x for x, _ in SAMPLERS[deterministic](MIXTURE.denoise, START, grid)]
        torch.testing.assert_close(torch.stack(silent), torch.stack(plain), rtol=0, atol=0)


def test_inversion_returns_the_start():
    grid = torch.cat([smooth(40, 7), torch.zeros(1, dtype=torch.float64)])
    *_, (image, _) = SAMPLERS["euler"](MIXTURE.denoise, START, grid)
    *_, (start, _) = SAMPLERS["ddim_inversion"](MIXTURE.denoise, image, grid, iterations=40)
    torch.testing.assert_close(start, START, rtol=1e-6, atol=1e-6)
    *_, (rough, _) = SAMPLERS["ddim_inversion"](MIXTURE.denoise, image, grid)
    assert 1e-3 < (rough - START).norm() / START.norm() < 0.3  # one iteration, the usual method, is only approximate
