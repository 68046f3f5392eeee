"""Plans of prompts over the steps: composition by its formula, pictures of different numbers of parts, and what is read when."""

import pytest
import torch

from daguerre.conditioning.clip import TextConditioner
from daguerre.conditioning.prompt_schedule import PromptSchedule
from daguerre.conditioning.sdxl import SDXLConditioner
from daguerre.diffusion import classifier_free_guidance
from daguerre.errors import DaguerreError

SIGMA = torch.tensor(1.0)


def denoiser(x, sigma, cond):
    """Something that tells conditions apart: the sum of each row's states."""
    return x + cond.context.square().sum((1, 2))[:, None]


def guided(conditioner, prompts, negatives, scale, step=0, steps=4) -> torch.Tensor:
    voices = PromptSchedule(conditioner, prompts, negatives, steps).at(step)
    return classifier_free_guidance(denoiser, *voices.with_guidance(scale))(torch.zeros(len(prompts), 1), SIGMA).flatten()


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


def test_pictures_of_one_batch_may_have_different_parts(conditioner):
    prompts = ["red AND pizza :0.5", "apple :0.5 AND house :0.5 AND x", "white"]
    negatives = ["", "blue", "red AND white"]
    together = guided(conditioner, prompts, negatives, 2.5)
    alone = torch.cat([guided(conditioner, [p], [n], 2.5) for p, n in zip(prompts, negatives, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_what_does_not_change_is_read_once(conditioner, monkeypatch):
    plan = PromptSchedule(conditioner, ["a [red:blue:.5] apple"] * 3, [""] * 3, 6)
    read = []
    encode = conditioner.encode
    monkeypatch.setattr(conditioner, "encode", lambda lines, negative=(): read.append(len(lines)) or encode(lines, negative))
    steps = [plan.at(step) for step in range(6)]
    assert read == [2, 2], "two different texts, each with its negative, for three pictures"
    assert len({id(step) for step in steps}) == 2
    assert steps[0] is steps[2]
    torch.testing.assert_close(steps[5].parts[0].context[2:], conditioner(["a blue apple"]).context)


def test_all_voices_have_the_length_of_the_longest(conditioner):
    voices = PromptSchedule(conditioner, ["red " * 40, "blue"], ["", ""], 1).at(0)
    assert {part.context.shape for part in (*voices.parts, voices.negative)} == {(2, 64, 32)}


def test_an_empty_negative_is_nothing_to_sdxl(small, tower):
    conditioner = SDXLConditioner([TextConditioner(small, tower, layer=-2, norm=False)])
    voices = PromptSchedule(conditioner, ["red", ""], ["", "blue"], 1).at(0)
    assert voices.negative.context[0].abs().max() == 0
    assert voices.negative.vector[0, :24].abs().max() == 0
    assert voices.negative.context[1].abs().max() > 0
    assert voices.parts[0].context[1].abs().max() > 0


def test_mistakes_are_told_before_the_run(conditioner):
    with pytest.raises(DaguerreError, match="character 7"):
        PromptSchedule(conditioner, ["[a|(b:1..2)]"], [""], 9)
    with pytest.raises(DaguerreError, match="1 prompts came with 0"):
        PromptSchedule(conditioner, ["a"], [], 9)
