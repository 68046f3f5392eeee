"""A prompt explained: each step's words with their tokens, and a caret under what cannot be meant."""

import json

import pytest

from daguerre.conditioning import Tokenizer
from daguerre.conditioning.explain import explain
from daguerre.conditioning.syntax import caret_message
from daguerre.errors import DaguerreError


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer.clip()


def test_every_step_is_told_once_with_its_tokens_and_windows(clip: Tokenizer):
    told = explain("a [cat:dog:.5] on a [table|chair], BREAK (photorealistic:1.2) AND a hat :0.6", 20, clip)
    assert [(saying.part, saying.steps[:2], saying.chunks) for saying in told.step_prompts] == [
        (1, (1, 3), (6, 2)),
        (1, (2, 4), (6, 2)),
        (1, (11, 13), (6, 2)),
        (1, (12, 14), (6, 2)),
        (2, (1, 2), (2,)),
    ]
    steps = sorted(step for saying in told.step_prompts if saying.part == 1 for step in saying.steps)
    assert steps == list(range(1, 21))
    text = told.text()
    assert "  part 1, steps 1, 3, 5 … 9: 'a cat on a table,' BREAK 'photorealistic' × 1.2\n    6 + 2 tokens in 2 windows of 75\n" in text
    assert "  part 2, steps 1 to 20: 'a hat'\n    2 tokens in 1 window of 75\n" in text
    assert "words of several tokens: photo·realistic" in text
    assert json.loads(json.dumps(told.json()))["says"][4]["pieces"] == [{"text": " a hat", "weight": 1.0}]


def test_a_slip_is_shown_with_a_caret(clip: Tokenizer):
    lines = explain("an apple (red", 1, clip).text().splitlines()
    assert lines[-2] == "an apple (red"
    assert lines[-1].index("^") == lines[-2].index("(")
    assert lines[-3] == "note, character 10:"


def test_what_has_no_meaning_is_shown_with_a_caret(clip: Tokenizer):
    with pytest.raises(DaguerreError) as told:
        explain("a (red:1.2.3) apple", 1, clip)
    sentence, empty, source, caret = str(told.value).splitlines()
    assert sentence.startswith("At character 8 of the prompt")
    assert (empty, source) == ("", "a (red:1.2.3) apple")
    assert caret == "       ^ here"


def test_the_caret_stands_below_its_sign_in_long_wide_and_broken_lines():
    source = "x" * 100 + "\n(" + "y" * 100
    near, caret = caret_message(source, 101, "here").splitlines()
    assert near[caret.index("^")] == "("
    assert near.startswith("… x")
    assert near.endswith("y …")
    near, caret = caret_message("赤い (", 3, "here").splitlines()
    assert caret.index("^") == 5  # two columns for each of the wide signs


def test_an_empty_prompt_says_nothing(clip: Tokenizer):
    assert "steps 1 to 3: nothing\n    0 tokens in 1 window of 75" in explain("", 3, clip).text()
