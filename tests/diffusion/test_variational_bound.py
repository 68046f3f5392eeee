"""The variational bound against a Gaussian whose terms are known in closed form, and against torch.distributions in float64."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from daguerre.diffusion import Posterior, Schedule, ScheduleConfig, variational_bound
from daguerre.diffusion.variational_bound import discretised_log_likelihood
from tests.tolerance import assert_rounded

CONFIGS = [
    ScheduleConfig("linear", 0.01, 0.3, timesteps=12),
    ScheduleConfig("cosine", timesteps=12),
    ScheduleConfig("linear", 0.01, 0.3, timesteps=12, zero_terminal_snr=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["linear", "cosine", "zero-snr"])
def test_the_terms_of_gaussian_data_with_its_exact_denoiser_have_their_expected_values(config: ScheduleConfig):
    schedule, s, count = Schedule(config), 0.15, 200_000
    generator = torch.Generator().manual_seed(0)
    x0 = (s * torch.randn(1, count, generator=generator)).double()
    bound = variational_bound(
        lambda x, sigma: torch.zeros_like(x) if sigma.isinf() else x * (s**2 / (s**2 + sigma**2)),
        x0,
        schedule,
        lambda: torch.randn(1, count, generator=generator).double(),
    )
    alpha_bar, sigmas = schedule.alphas_cumprod, schedule.sigmas
    for t in range(1, len(schedule)):
        beta, before = 1 - alpha_bar[t] / alpha_bar[t - 1], alpha_bar[t - 1]
        variance = beta * (1 - before) / (1 - alpha_bar[t])  # of q and of p, so only the means differ
        a = before.sqrt() * beta / (1 - alpha_bar[t])
        error = s**2 if sigmas[t].isinf() else (s**2 * sigmas[t] ** 2 / (s**2 + sigmas[t] ** 2)).item()  # E (x0 − E[x0|x])²
        scale = (a**2 / variance / 2 / math.log(2)).item()
        spread = math.sqrt(2 / count) * scale * error  # standard deviation of the mean of squared Gaussians
        assert abs(bound.steps[0, t].item() - scale * error) < 6 * spread, t
    last = alpha_bar[-1].item()
    expected = 0.5 * (last * s**2 - last - math.log1p(-last)) / math.log(2)
    assert abs(bound.prior.item() - expected) < 6 * 0.5 * last * s**2 * math.sqrt(2 / count) / math.log(2) + 1e-12
    assert_rounded(bound.total, bound.prior + bound.steps.sum(1), len(schedule))


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_each_term_is_the_divergence_of_two_gaussians_or_a_probability(variance):
    schedule = Schedule(CONFIGS[0])
    T, generator = len(schedule), torch.Generator().manual_seed(1)

    def uniform() -> torch.Tensor:
        return torch.rand(T, 3, 4, 4, generator=generator, dtype=torch.float64)

    x0, predicted, x_t, fraction = ((uniform() * 255).round() / 127.5 - 1, 2 * uniform() - 1, 2 * uniform() - 1, uniform())
    x0[:, 0, 0, 0], x0[:, 0, 0, 1] = -1, 1
    predicted[0] = x0[0] + 0.2 * predicted[0]  # near enough that the naive formula below is exact, too
    posterior, t = Posterior.of(schedule), torch.arange(T)
    log_variance = posterior.log_variance(t, variance, x0, fraction if variance == "learned" else None)
    terms = posterior.bound_terms(t, x0, predicted, log_variance)

    alpha = 1 - torch.linspace(0.01, 0.3, T, dtype=torch.float64)
    alpha_bar = alpha.cumprod(0)
    for i in range(1, T):
        before, beta = alpha_bar[i - 1], 1 - alpha[i]
        small = beta * (1 - before) / (1 - alpha_bar[i])
        means = [(before.sqrt() * beta * x + alpha[i].sqrt() * (1 - before) * x_t[i]) / (1 - alpha_bar[i]) for x in (x0[i], predicted[i])]
        of_p = {"small": small, "large": beta, "learned": beta ** fraction[i] * small ** (1 - fraction[i])}[variance]
        truth = kl_divergence(Normal(means[0], small.sqrt()), Normal(means[1], of_p**0.5)).mean() / math.log(2)
        assert_rounded(terms[i], truth, 1000)
    second = (1 - alpha[1]) * (1 - alpha_bar[0]) / (1 - alpha_bar[1])
    of_p = (1 - alpha[0]) ** fraction[0] * second ** (1 - fraction[0]) if variance == "learned" else second
    decoder = Normal(predicted[0], of_p**0.5)
    lower = torch.where(x0[0] == -1, torch.zeros(()).double(), decoder.cdf(x0[0] - 1 / 255))
    upper = torch.where(x0[0] == 1, torch.ones(()).double(), decoder.cdf(x0[0] + 1 / 255))
    assert_rounded(terms[0], -(upper - lower).log().mean() / math.log(2), 10**8)  # the difference of probabilities loses 4 digits


def test_the_probabilities_of_all_values_of_a_pixel_sum_to_one():
    values = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
    mean = torch.tensor([-1.3, -0.4, 0.2, 0.999])
    log_std = torch.tensor([-4.0, -1.0, 0.5, -2.0])
    total = discretised_log_likelihood(values, mean.double(), log_std.double()).exp().sum(0)
    assert torch.allclose(total, torch.ones_like(total), atol=256 * 1e-12)
