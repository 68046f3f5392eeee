"""The denoiser for each prediction type; training targets and loss weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.diffusion import (
    PREDICTIONS,
    Conditioning,
    Denoiser,
    Prediction,
    Schedule,
    ScheduleConfig,
    add_noise,
    loss_weight,
    prediction_target,
    training_pair,
    two_gaussians,
)
from daguerre.errors import DaguerreError

MIXTURE = two_gaussians()
SD1, ZERO = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(zero_terminal_snr=True))
X = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("t", [0, 1, 137, 500, 998])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [SD1, ZERO], ids=["sd1", "zero"])
def test_the_exact_network_gives_the_exact_denoiser(schedule: Schedule, prediction: Prediction, t: int):
    sigma = schedule.sigmas[t]
    denoiser = Denoiser(MIXTURE.network(schedule, prediction), schedule, prediction)
    x = X * (sigma**2 + 1).sqrt()
    torch.testing.assert_close(denoiser(x, sigma), MIXTURE.denoise(x, sigma), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_pure_noise_is_denoised_to_the_mean(prediction: Prediction):
    denoiser = Denoiser(MIXTURE.network(ZERO, prediction), ZERO, prediction)
    mean = (MIXTURE.weights @ MIXTURE.means).expand_as(X)
    torch.testing.assert_close(denoiser(X, torch.tensor(math.inf)), mean)
    torch.testing.assert_close(denoiser(4096 * X, ZERO.finite_sigmas[-1]), mean, rtol=0, atol=3e-3)


def test_epsilon_cannot_start_from_pure_noise():
    with pytest.raises(DaguerreError, match="epsilon prediction cannot start"):
        Denoiser(MIXTURE.network(ZERO, "epsilon"), ZERO, "epsilon")(X, torch.tensor(math.inf))


def test_the_inputs_of_the_network():
    """√ᾱ·x0 + √(1−ᾱ)·ε, and t for each image."""
    inputs = {}

    def network(x, t, cond):
        inputs.update(x=x, t=t, cond=cond)
        return x

    x0, eps = X[:16].float(), X[16:].float()
    cond = Conditioning(label=torch.arange(16))
    output = Denoiser(network, SD1, "epsilon", dtype=torch.bfloat16)(x0 + SD1.sigmas[400] * eps, SD1.sigmas[400], cond)
    torch.testing.assert_close(inputs["x"], add_noise(x0, eps, SD1.alphas_cumprod[400:401]).bfloat16(), rtol=1e-2, atol=1e-2)
    assert inputs["t"].tolist() == [400] * 16
    assert inputs["x"].dtype == torch.bfloat16
    assert output.dtype == torch.float32
    assert inputs["cond"] is cond


@pytest.mark.parametrize(("rounding", "t"), [("none", 10.7), ("nearest", 11), ("down", 10)])
def test_rounding_of_t(rounding, t: float):
    timesteps = []
    Denoiser(lambda x, t, cond: timesteps.append(t) or x, SD1, "v", rounding=rounding)(X, SD1.t_to_sigma(torch.tensor(10.7)))
    assert timesteps[0][0].item() == pytest.approx(t, abs=1e-4)


@settings(deadline=None)
@given(st.floats(1e-3, 1 - 1e-3))
def test_the_true_target_gives_x0(alpha_bar: float):
    x0, eps = X[:16], X[16:]
    ab = torch.full((16,), alpha_bar, dtype=torch.float64)
    sigma = ((1 - ab[0]) / ab[0]).sqrt()
    for prediction in PREDICTIONS:
        x_in, target = training_pair(prediction, x0, eps, ab)
        torch.testing.assert_close(x_in, x0 * alpha_bar**0.5 + eps * (1 - alpha_bar) ** 0.5)
        denoiser = Denoiser(lambda x, t, cond, target=target: target, SD1, prediction)
        torch.testing.assert_close(denoiser(x0 + sigma * eps, sigma), x0, rtol=1e-7, atol=1e-7)


def test_the_target_of_v_at_the_ends():
    x0, eps = X[:2], X[2:4]
    torch.testing.assert_close(prediction_target("v", x0, eps, torch.tensor([1.0, 0.0])), torch.stack([eps[0], -x0[1]]))


@pytest.mark.parametrize("snr", [1e-6, 0.3, 4.9, 5.1, 40.0, 1e4])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_is_the_same_loss_for_every_prediction(prediction: Prediction, snr: float):
    """weight·|target − guess|² = min(SNR, γ)·|x0 − x̂0|² (Hang et al. 2023, eq. 6), with x̂0 computed from the guess at the same input."""
    snrs = torch.tensor([snr], dtype=torch.float64)
    alpha_bar = snrs / (1 + snrs)
    x0, eps = X[:1], X[1:2]
    x_in, target = training_pair(prediction, x0, eps, alpha_bar)
    guess = target + 0.1
    sigma = (1 / snrs[0]).sqrt()
    x0_guess = Denoiser(lambda x, t, cond: guess, SD1, prediction)(x_in * (sigma**2 + 1).sqrt(), sigma)
    weighted = loss_weight(prediction, snrs, 5.0) * (guess - target).square().sum()
    torch.testing.assert_close(weighted, snrs.clamp(max=5) * (x0_guess - x0).square().sum(), rtol=1e-6, atol=0)


def test_weights_at_zero_terminal_snr():
    snr = ZERO.alphas_cumprod / (1 - ZERO.alphas_cumprod)
    for prediction in PREDICTIONS:
        weight = loss_weight(prediction, snr, 5.0)
        assert weight.isfinite().all()
        assert (weight >= 0).all()
    assert loss_weight("epsilon", snr, 5.0)[-1] == 1
    assert loss_weight("v", snr, 5.0)[-1] == 0
    assert loss_weight("v", snr, 5.0, floor=0.05)[-1] == pytest.approx(0.05)
    assert (loss_weight("v", snr) == 1).all()


def test_the_weight_of_v_equals_the_paper_s_code():
    snr = torch.tensor([0.5, 5, 20.0])
    torch.testing.assert_close(loss_weight("v", snr, 5.0), torch.tensor([0.5 / 1.5, 5 / 6, 5 / 21]))


def test_an_unknown_prediction():
    for call in (lambda: Denoiser(lambda *_: X, SD1, "epsilom"), lambda: loss_weight("eps", X)):  # type: ignore[arg-type]
        with pytest.raises(DaguerreError, match="use one of epsilon, v, x0"):
            call()
