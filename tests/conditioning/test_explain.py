"""Explanations of prompts: the text and tokens of each step, and carets at warnings and errors."""

import json

import pytest

from daguerre.conditioning import Tokenizer
from daguerre.conditioning.explain import explain
from daguerre.conditioning.syntax import caret_message
from daguerre.errors import DaguerreError


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer.clip()


def test_every_step_is_listed_once_with_its_tokens_and_chunks(clip: Tokenizer):
    explanation = explain("a [cat:dog:.5] on a [table|chair], BREAK (photorealistic:1.2) AND a hat :0.6", 20, clip)
    assert [(entry.part, entry.steps[:2], entry.tokens_per_chunk) for entry in explanation.step_prompts] == [
        (1, (1, 3), (6, 2)),
        (1, (2, 4), (6, 2)),
        (1, (11, 13), (6, 2)),
        (1, (12, 14), (6, 2)),
        (2, (1, 2), (2,)),
    ]
    steps = sorted(step for entry in explanation.step_prompts if entry.part == 1 for step in entry.steps)
    assert steps == list(range(1, 21))
    text = explanation.text()
    assert "  part 1, steps 1, 3, 5 … 9: 'a cat on a table,' BREAK 'photorealistic' × 1.2\n    6 + 2 tokens in 2 chunks of 75\n" in text
    assert "  part 2, steps 1 to 20: 'a hat'\n    2 tokens in 1 chunk of 75\n" in text
    assert "words of several tokens: photo·realistic" in text
    assert json.loads(json.dumps(explanation.json()))["step_prompts"][4]["text"] == [{"text": " a hat", "weight": 1.0}]


def test_a_warning_has_a_caret(clip: Tokenizer):
    lines = explain("an apple (red", 1, clip).text().splitlines()
    assert lines[-2] == "an apple (red"
    assert lines[-1].index("^") == lines[-2].index("(")
    assert lines[-3] == "warning, character 10:"


def test_an_error_has_a_caret(clip: Tokenizer):
    with pytest.raises(DaguerreError) as error:
        explain("a (red:1.2.3) apple", 1, clip)
    sentence, empty, source, caret = str(error.value).splitlines()
    assert sentence.startswith("Character 8 of the prompt: '1.2.3' in '(red:1.2.3) apple' is not a number")
    assert (empty, source) == ("", "a (red:1.2.3) apple")
    assert caret == "       ^ here"


def test_the_caret_is_below_its_character_in_long_wide_and_multi_line_prompts():
    source = "x" * 100 + "\n(" + "y" * 100
    excerpt, caret = caret_message(source, 101, "here").splitlines()
    assert excerpt[caret.index("^")] == "("
    assert excerpt.startswith("… x")
    assert excerpt.endswith("y …")
    excerpt, caret = caret_message("赤い (", 3, "here").splitlines()
    assert caret.index("^") == 5  # two columns for each wide character


def test_an_empty_prompt(clip: Tokenizer):
    assert "steps 1 to 3: nothing\n    0 tokens in 1 chunk of 75" in explain("", 3, clip).text()
