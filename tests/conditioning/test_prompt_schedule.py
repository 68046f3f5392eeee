"""Prompt schedules: composition by its formula, images with different numbers of parts, and caching."""

import pytest
import torch

from daguerre.conditioning.clip import TextConditioner
from daguerre.conditioning.prompt_schedule import PromptSchedule
from daguerre.conditioning.sdxl import SDXLConditioner
from daguerre.diffusion import classifier_free_guidance
from daguerre.errors import DaguerreError

SIGMA = torch.tensor(1.0)


def denoiser(x, sigma, cond):
    """A denoiser whose output depends on the condition: the sum of squares of each row's states."""
    return x + cond.context.square().sum((1, 2))[:, None]


def guided(conditioner, prompts, negatives, scale, step=0, steps=4) -> torch.Tensor:
    conditions = PromptSchedule(conditioner, prompts, negatives, steps).at(step)
    return classifier_free_guidance(denoiser, *conditions.with_guidance(scale))(torch.zeros(len(prompts), 1), SIGMA).flatten()


@pytest.fixture
def conditioner(small, tower) -> TextConditioner:
    return TextConditioner(small, tower)


def value(conditioner, prompt: str) -> torch.Tensor:
    return conditioner([prompt]).context.square().sum()


def test_parts_are_composed_by_the_formula(conditioner):
    negative, cat, dog = (value(conditioner, text) for text in ("blue", "red apple", "pizza"))
    expected = negative + 3 * ((cat - negative) + 0.5 * (dog - negative))
    got = guided(conditioner, ["red apple AND pizza :0.5"], ["blue"], 3)
    torch.testing.assert_close(got[0], expected, rtol=1e-4, atol=1e-3)


def test_a_plain_prompt_is_classifier_free_guidance(conditioner):
    negative, cat = value(conditioner, ""), value(conditioner, "red apple")
    torch.testing.assert_close(guided(conditioner, ["red apple"], [""], 5)[0], 5 * cat - 4 * negative, rtol=1e-4, atol=1e-3)


def test_images_of_a_batch_may_have_different_parts(conditioner):
    prompts = ["red AND pizza :0.5", "apple :0.5 AND house :0.5 AND x", "white"]
    negatives = ["", "blue", "red AND white"]
    together = guided(conditioner, prompts, negatives, 2.5)
    alone = torch.cat([guided(conditioner, [p], [n], 2.5) for p, n in zip(prompts, negatives, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_steps_with_the_same_text_share_their_conditions(conditioner):
    schedule = PromptSchedule(conditioner, ["a [red:blue:.5] apple"] * 3, [""] * 3, 6)
    steps = [schedule.at(step) for step in range(6)]
    assert len({id(step) for step in steps}) == 2
    assert steps[0] is steps[2]
    assert steps[3] is steps[5]
    torch.testing.assert_close(steps[5].parts[0].context[2:], conditioner(["a blue apple"]).context)


def test_all_parts_have_the_length_of_the_longest(conditioner):
    conditions = PromptSchedule(conditioner, ["red " * 40, "blue"], ["", ""], 1).at(0)
    assert {part.context.shape for part in (*conditions.parts, conditions.negative)} == {(2, 64, 32)}


def test_sdxl_zeroes_an_empty_negative_prompt(small, tower):
    conditioner = SDXLConditioner([TextConditioner(small, tower, layer=-2, norm=False)])
    conditions = PromptSchedule(conditioner, ["red", ""], ["", "blue"], 1).at(0)
    assert conditions.negative.context[0].abs().max() == 0
    assert conditions.negative.vector[0, :24].abs().max() == 0
    assert conditions.negative.context[1].abs().max() > 0
    assert conditions.parts[0].context[1].abs().max() > 0


def test_errors_appear_before_sampling(conditioner):
    with pytest.raises(DaguerreError, match="Character 7"):
        PromptSchedule(conditioner, ["[a|(b:1..2)]"], [""], 9)
    with pytest.raises(DaguerreError, match="There are 1 prompts and 0 negative prompts"):
        PromptSchedule(conditioner, ["a"], [], 9)
