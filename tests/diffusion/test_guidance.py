"""Conditions and their weighted sum, rescaling, intervals, CFG++."""

from dataclasses import replace

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from daguerre.diffusion import (
    SAMPLERS,
    Conditioning,
    Denoiser,
    Schedule,
    ScheduleConfig,
    cfg_plus_plus,
    classifier_free_guidance,
    get_sigmas,
    guidance_interval,
)
from daguerre.errors import DaguerreError

SCHEDULE = Schedule(ScheduleConfig())
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 4, 4, 4, generator=GENERATOR, dtype=torch.float64)
PROMPT = Conditioning(context=torch.randn(2, 5, 4, generator=GENERATOR, dtype=torch.float64))
NEGATIVE = Conditioning(context=torch.randn(1, 5, 4, generator=GENERATOR, dtype=torch.float64))
SIGMA = SCHEDULE.sigmas[700]


class Network:
    """Computes from its input and context, and records the batch of every call."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.num_conditions: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.batches.append(len(x))
        self.num_conditions.append(cond.num_conditions)
        assert cond.context is not None
        return torch.tanh(x * 1.3) * 0.5 + cond.context.mean(1)[:, :, None, None] * x.roll(1, -1)


def alone(prediction, cond: Conditioning, x: Tensor = X, sigma: Tensor = SIGMA) -> Tensor:
    return Denoiser(Network(), SCHEDULE, prediction)(x, sigma, cond.expand(len(x)))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_guidance_is_the_weighted_sum_in_one_call(prediction):
    network = Network()
    guided = classifier_free_guidance(Denoiser(network, SCHEDULE, prediction), [PROMPT, NEGATIVE], [7.5, -6.5])(X, SIGMA)
    assert network.batches == [4]
    assert network.num_conditions == [2]
    expected = alone(prediction, NEGATIVE) + 7.5 * (alone(prediction, PROMPT) - alone(prediction, NEGATIVE))
    torch.testing.assert_close(guided, expected)


def test_three_weights_are_the_two_scales_of_instruct_pix2pix():
    text, image, empty = (Conditioning(context=torch.randn(2, 5, 4, dtype=torch.float64)) for _ in range(3))
    s_text, s_image = 7.5, 1.5
    guided = classifier_free_guidance(Denoiser(Network(), SCHEDULE, "v"), [text, image, empty], [s_text, s_image - s_text, 1 - s_image])(
        X, SIGMA
    )
    a, b, c = (alone("v", each) for each in (text, image, empty))
    torch.testing.assert_close(guided, c + s_image * (b - c) + s_text * (a - b))


def test_a_condition_with_weight_zero_is_not_evaluated():
    network = Network()
    guided = classifier_free_guidance(Denoiser(network, SCHEDULE, "v"), [PROMPT, NEGATIVE], [1.0, 0.0])(X, SIGMA)
    assert network.batches == [2]
    torch.testing.assert_close(guided, alone("v", PROMPT))


def test_num_conditions_is_reset_where_the_batch_changes():
    joined = replace(Conditioning.cat([PROMPT, PROMPT]), num_conditions=2)
    assert joined.to(dtype=torch.float32).num_conditions == 2
    assert joined[1:3].num_conditions == joined.repeat(2).num_conditions == Conditioning.cat([joined, joined]).num_conditions == 1


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("amount", [0.3, 0.7, 1.0])
def test_rescaling_equals_diffusers(prediction, amount: float):
    """diffusers rescales the prediction of the network."""
    conditions = [PROMPT.expand(2), NEGATIVE.expand(2)]
    x_in, t = X / (SIGMA**2 + 1).sqrt(), torch.tensor([700.0, 700.0])
    text, negative = (Network()(x_in, t, cond) for cond in conditions)
    reference = rescale_noise_cfg(negative + 9 * (text - negative), text, guidance_rescale=amount)
    expected = Denoiser(lambda *_: reference, SCHEDULE, prediction)(X, SIGMA)
    torch.testing.assert_close(
        classifier_free_guidance(Denoiser(Network(), SCHEDULE, prediction), conditions, [9.0, -8.0], rescale=amount)(X, SIGMA), expected
    )


def test_guidance_interval_covers_a_fraction_of_the_steps():
    assert guidance_interval([7.5] * 8, 0.25, 0.75) == [1, 1, 7.5, 7.5, 7.5, 7.5, 1, 1]
    assert guidance_interval([2.0, 3.0, 4.0], 0, 1) == [2, 3, 4]
    assert guidance_interval([7.5] * 3, 0.25, 0.75, first=5, total=8) == [7.5, 1, 1]


def test_cfg_plus_plus_equals_its_algorithm():
    """Guided x0 and unguided ε (Chung et al. 2024, algorithm 2), against one Euler step with the scale of each step."""
    grid, scale = get_sigmas(SCHEDULE, 8), 0.6
    x = X * grid[0]
    for step_scale, sigma, sigma_next in zip(cfg_plus_plus(scale, grid), grid, grid[1:], strict=False):
        denoise = classifier_free_guidance(Denoiser(Network(), SCHEDULE, "v"), [PROMPT, NEGATIVE], [step_scale, 1 - step_scale])
        ((found, _),) = SAMPLERS["euler"](denoise, x, torch.stack([sigma, sigma_next]))
        free, text = alone("v", NEGATIVE, x, sigma), alone("v", PROMPT, x, sigma)
        x = free + scale * (text - free) + sigma_next * (x - free) / sigma
        torch.testing.assert_close(found, x)


@pytest.mark.parametrize(("weights", "message"), [([1.0], "Got 2 conditions but 1 weights"), ([7.5, 1.0], "must sum to 1")])
def test_wrong_weights(weights: list[float], message: str):
    with pytest.raises(DaguerreError, match=message):
        classifier_free_guidance(Denoiser(Network(), SCHEDULE, "v"), [PROMPT, NEGATIVE], weights)


class TestConditioning:
    def test_batch_repeat_and_slices(self):
        both = Conditioning(context=torch.arange(2.0).reshape(2, 1, 1), label=torch.tensor([4, 5]))
        assert both.batch == 2
        assert both.repeat(2).label.tolist() == [4, 5, 4, 5]  # type: ignore[union-attr]
        assert both[1:].context.flatten().tolist() == [1]  # type: ignore[union-attr]
        assert Conditioning().batch is None
        assert Conditioning().expand(7) == Conditioning()

    def test_cat_is_the_inverse_of_slicing(self):
        both = Conditioning(context=torch.randn(3, 2, 2), vector=torch.randn(3, 5), concat=torch.randn(3, 1, 4, 4))
        again = Conditioning.cat([both[:1], both[1:]])
        for name in ("context", "vector", "concat"):
            torch.testing.assert_close(getattr(again, name), getattr(both, name), rtol=0, atol=0)
        assert again.label is None

    def test_only_floats_change_their_dtype(self):
        moved = Conditioning(context=torch.zeros(1, 2, 2), label=torch.tensor([3])).to(dtype=torch.bfloat16)
        assert moved.context.dtype == torch.bfloat16  # type: ignore[union-attr]
        assert moved.label.dtype == torch.int64  # type: ignore[union-attr]

    def test_disagreement(self):
        with pytest.raises(DaguerreError, match="must agree in context"):
            Conditioning.cat([Conditioning(context=torch.zeros(1, 77, 4)), Conditioning(context=torch.zeros(1, 154, 4))])
        with pytest.raises(DaguerreError, match="must agree in vector: 1 of 2"):
            Conditioning.cat([Conditioning(vector=torch.zeros(1, 4)), Conditioning()])
        with pytest.raises(DaguerreError, match="Got 2 conditions for 3 images"):
            Conditioning(label=torch.zeros(2)).expand(3)
