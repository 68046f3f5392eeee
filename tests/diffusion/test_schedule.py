"""ᾱ and σ against diffusers and closed forms; conversion of σ and t; zero terminal SNR."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError

DIFFUSERS_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
SD1, ZERO = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(zero_terminal_snr=True))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", DIFFUSERS_NAMES)
def test_alphas_cumprod_equal_diffusers(kind, zero: bool):
    ours = Schedule(ScheduleConfig(kind, 0.0001, 0.02, zero_terminal_snr=zero))
    theirs = DDIMScheduler(beta_schedule=DIFFUSERS_NAMES[kind], beta_start=0.0001, beta_end=0.02, rescale_betas_zero_snr=zero)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=2e-4, atol=1e-7)


def test_sigmas_of_stable_diffusion():
    """σ from 0.0292 to 14.6146, as in all implementations."""
    assert SD1.sigmas[0].item() == pytest.approx(0.029167, abs=1e-6)
    assert SD1.sigmas[-1].item() == pytest.approx(14.614642, abs=1e-5)
    assert len(SD1) == 1000
    torch.testing.assert_close(SD1.sigmas, SD1.finite_sigmas, rtol=0, atol=0)


def test_cosine_schedule():
    alphas_cumprod = Schedule(ScheduleConfig("cosine")).alphas_cumprod
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    torch.testing.assert_close(alphas_cumprod[:999], torch.tensor(f[1:1000], dtype=torch.float64) / f[0])


def test_zero_terminal_snr():
    """√ᾱ is shifted and scaled: the last is 0, the first is unchanged, and the differences keep their ratios."""
    assert ZERO.alphas_cumprod[-1] == 0
    assert ZERO.sigmas[-1] == math.inf
    assert ZERO.finite_sigmas[-1].item() == pytest.approx(math.sqrt(2**24 - 1))
    assert ZERO.alphas_cumprod[0].item() == pytest.approx(SD1.alphas_cumprod[0].item())
    before, after = SD1.alphas_cumprod.sqrt().diff(), ZERO.alphas_cumprod.sqrt().diff()
    torch.testing.assert_close(after / after[0], before / before[0])


@settings(deadline=None)
@given(st.floats(0, 999))
def test_t_and_sigma_are_inverse(t: float):
    for schedule in (SD1, ZERO):
        assert schedule.sigma_to_t(schedule.t_to_sigma(torch.tensor(t))).item() == pytest.approx(t, abs=1e-3)


def test_t_of_the_schedule_s_sigmas_is_an_integer():
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(SD1.sigma_to_t(SD1.sigmas), t, rtol=0, atol=1e-9)
    torch.testing.assert_close(SD1.t_to_sigma(t), SD1.sigmas, rtol=0, atol=0)
    assert ZERO.sigma_to_t(torch.tensor(math.inf)) == 999
    assert ZERO.sigma_to_t(ZERO.finite_sigmas[-1]) == 999
    assert SD1.sigma_to_t(torch.tensor(0.0)) == 0


def test_interpolation_in_ln_sigma_or_in_sigma():
    low, high = SD1.sigmas[10], SD1.sigmas[11]
    assert SD1.t_to_sigma(torch.tensor(10.5)).item() == pytest.approx((low * high).sqrt().item())
    assert SD1.t_to_sigma(torch.tensor(10.5), "linear").item() == pytest.approx(((low + high) / 2).item())


def test_an_unknown_kind():
    with pytest.raises(DaguerreError, match="Did you mean 'scaled_linear'"):
        Schedule(ScheduleConfig("scaled_liner"))  # type: ignore[arg-type]
