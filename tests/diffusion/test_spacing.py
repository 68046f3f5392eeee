"""Spacings against closed forms, the fixture and published tables."""

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from daguerre.diffusion import SPACINGS, Schedule, ScheduleConfig, get_sigmas, midpoints, tcd_targets
from daguerre.diffusion.spacing import beta_distribution, beta_quantile
from daguerre.errors import DaguerreError

SD1, ZERO = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(zero_terminal_snr=True))
GOLDEN = load_file(Path(__file__).parents[1] / "fixtures" / "golden" / "k_diffusion_trajectories.safetensors")


def steps_of(spacing: str, steps: int, **options: object) -> list[float]:
    """The t that a spacing visits."""
    return [round(t, 6) for t in SD1.sigma_to_t(get_sigmas(SD1, steps, spacing, **options)[:-1]).tolist()]


@pytest.mark.parametrize(
    ("spacing", "options", "t"),
    [
        ("leading", {}, [800, 600, 400, 200, 0]),
        ("leading", {"steps_offset": 1}, [801, 601, 401, 201, 1]),
        ("leading", {"drop": 1}, [830, 664, 498, 332, 166]),
        ("linspace", {}, [999, 749.25, 499.5, 249.75, 0]),
        ("linspace", {"round_t": True}, [999, 749, 500, 250, 0]),
        ("linspace", {"drop": 1, "round_t": True}, [999, 799, 599, 400, 200]),
        ("trailing", {}, [999, 799, 599, 399, 199]),
        ("sgm_uniform", {}, [999, 799.2, 599.4, 399.6, 199.8]),
        ("simple", {}, [999, 799, 599, 399, 199]),
        ("lcm", {}, [999, 799, 599, 399, 199]),
    ],
)
def test_spacings_in_t(spacing: str, options: dict, t: list[float]):
    assert steps_of(spacing, 5, **options) == pytest.approx(t, abs=1e-5)


def test_rounding_where_n_does_not_divide_t():
    assert steps_of("trailing", 7) == [999, 856, 713, 570, 428, 285, 142]
    assert steps_of("simple", 7) == [999, 857, 714, 571, 428, 285, 142]
    assert steps_of("lcm", 4) == [999, 759, 499, 259]


@pytest.mark.parametrize("steps", [8, 25])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "polyexponential"])
def test_spacings_in_sigma_are_those_of_the_fixture(spacing: str, steps: int):
    ours = get_sigmas(SD1, steps, spacing, sigma_min=0.03, sigma_max=14.6)
    torch.testing.assert_close(ours, GOLDEN[f"sigmas.{spacing}.{steps}"], rtol=1e-6, atol=0)


def test_polyexponential_is_dense_at_the_low_end():
    ramp = torch.tensor([1, 0.25, 0], dtype=torch.float64)
    logs = get_sigmas(SD1, 3, "polyexponential", rho=2.0)[:-1].log()
    torch.testing.assert_close((logs - logs[-1]) / (logs[0] - logs[-1]), ramp)


def test_kl_optimal_is_even_in_the_arctangent():
    angles = get_sigmas(SD1, 9, "kl_optimal")[:-1].atan()
    torch.testing.assert_close(angles.diff(), angles.diff()[:1].expand(8))


def test_beta_is_the_quantiles_of_the_distribution():
    t = torch.tensor(steps_of("beta", 10), dtype=torch.float64)
    expected = scipy.stats.beta.ppf([1 - i / 10 for i in range(10)], 0.6, 0.6) * 999
    torch.testing.assert_close(t, torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert t.diff().abs().argmin() in (0, 8)  # dense at an end


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.5), (2.0, 5.0), (1.0, 3.0), (7.5, 0.8)])
def test_the_beta_distribution_is_scipy_s(a: float, b: float):
    x = torch.linspace(0, 1, 501, dtype=torch.float64)
    torch.testing.assert_close(beta_distribution(x, a, b), torch.from_numpy(scipy.stats.beta.cdf(x, a, b)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(beta_quantile(x, a, b), torch.from_numpy(scipy.stats.beta.ppf(x, a, b)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_aligned_steps_are_the_published_ones(family: str):
    from diffusers.schedulers import AysSchedules

    published = {"sd1": "StableDiffusionSigmas", "sdxl": "StableDiffusionXLSigmas"}[family]
    ours = get_sigmas(SD1, 10, "align_your_steps", family=family)
    torch.testing.assert_close(ours, torch.tensor(AysSchedules[published], dtype=torch.float64), rtol=0, atol=6e-3)
    twice = get_sigmas(SD1, 20, "align_your_steps", family=family)
    torch.testing.assert_close(twice[:-1:2], ours[:-1])
    torch.testing.assert_close(twice[1:-1:2][:-1], (ours[:-2] * ours[1:-1]).sqrt())


@settings(deadline=None)
@given(st.sampled_from(sorted(SPACINGS)), st.integers(1, 50), st.booleans(), st.booleans(), st.booleans())
def test_sigmas_descend_to_the_final_one(spacing: str, steps: int, zero: bool, to_zero: bool, exact: bool):
    schedule = ZERO if zero else SD1
    grid = get_sigmas(schedule, steps, spacing, final="zero" if to_zero else "sigma_min", terminal="exact" if exact else "capped")
    assert (grid[1:] < grid[:-1]).all()
    assert grid.dtype == torch.float64
    assert len(grid) == steps + 1 or (len(grid) == steps and not to_zero)
    assert grid[-1].item() == pytest.approx(0 if to_zero else schedule.sigmas[0].item())
    if spacing not in ("leading", "align_your_steps"):  # these do not start at the noisiest step
        assert grid[0].isinf() == (zero and exact)


def test_zero_terminal_snr_capped_and_exact():
    assert get_sigmas(ZERO, 5)[0].item() == pytest.approx(4096, rel=1e-6)
    assert get_sigmas(ZERO, 5, terminal="exact")[0] == math.inf
    torch.testing.assert_close(get_sigmas(ZERO, 5, terminal="exact")[1:], get_sigmas(ZERO, 5)[1:], rtol=0, atol=0)


def test_a_cosine_schedule_ends_in_pure_noise_too():
    cosine = Schedule(ScheduleConfig("cosine"))
    assert get_sigmas(cosine, 5)[0].item() == pytest.approx(4096, rel=1e-6)
    assert get_sigmas(cosine, 5, terminal="exact")[0] == math.inf
    assert get_sigmas(SD1, 5, terminal="exact")[0] == SD1.sigmas[-1]


def test_midpoints_are_half_way_in_t():
    grid = get_sigmas(SD1, 3)
    torch.testing.assert_close(SD1.sigma_to_t(midpoints(SD1, grid))[:2], (SD1.sigma_to_t(grid)[:2] + SD1.sigma_to_t(grid)[1:3]) / 2)


def test_tcd_targets():
    grid = get_sigmas(SD1, 4, "lcm")  # t = 999, 759, 499, 259
    assert SD1.sigma_to_t(tcd_targets(SD1, grid, 0.3))[:3].tolist() == pytest.approx([531, 349, 181])
    assert tcd_targets(SD1, grid, 0.3)[-1] == 0
    torch.testing.assert_close(tcd_targets(SD1, grid, 0.0), grid[1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((5, "trialing"), {}, "Did you mean 'trailing'"),
        ((0,), {}, "steps is 0; it must be 1 to 1000"),
        ((-3,), {}, "steps is -3"),
        ((1001,), {}, "steps is 1001"),
        ((5, "karras"), {"steps_offset": 1}, "has no option 'steps_offset'; its options are rho"),
        ((60, "lcm"), {}, "'lcm', the default of the samplers lcm and tcd, allows at most 50 steps"),
        ((5, "align_your_steps"), {"family": "sdx"}, "Did you mean 'sdxl'"),
    ],
)
def test_bad_input(arguments: tuple, options: dict, message: str):
    with pytest.raises(DaguerreError, match=message):
        get_sigmas(SD1, *arguments, **options)
