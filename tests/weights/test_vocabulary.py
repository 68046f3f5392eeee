"""Vocabularies: which words of a prompt no caption has, and which known ones are near."""

from pathlib import Path

import pytest

from daguerre.errors import DaguerreError
from daguerre.weights.vocabulary import MAX_UNKNOWN, Vocabulary

VOCABULARY = Vocabulary.of(["red apple", "T-Rex", "clock showing one o'clock", "dog", "horse racing"], ["a photo of a Dog"])


def test_a_vocabulary_keeps_its_words_in_a_folder(tmp_path: Path):
    assert Vocabulary.read(tmp_path) is None
    VOCABULARY.write(tmp_path)
    assert Vocabulary.read(tmp_path) == VOCABULARY
    assert VOCABULARY.with_captions(["a Cat"]).words == VOCABULARY.words | {"cat"}


@pytest.mark.parametrize("text", ["", "[]", '{"names": ["a"]}', '{"names": [1], "words": []}', '{"names": [], "words": null}', "\xff"])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / "vocabulary.json").write_text(text, encoding="latin-1")
    with pytest.raises(DaguerreError, match=r"vocabulary\.json"):
        Vocabulary.read(tmp_path)


def test_punctuation_and_case_do_not_make_a_word_unknown():
    assert VOCABULARY.unknown(["RED apple!", "a photo: t-rex, one o’clock (dog)", ""]) == []
    assert VOCABULARY.unknown(["a Zebra and a zebra", "riding zebras"]) == ["zebra", "and", "riding", "zebras"]


def test_near_words_are_related_or_spelled_alike():
    assert VOCABULARY.nearest("photograph") == ["photo"]
    assert VOCABULARY.nearest("riding") == ["horse racing"]  # the vocabulary has no "person biking"
    assert VOCABULARY.nearest("apples") == ["apple"]
    assert VOCABULARY.nearest("puppy") == ["dog"]
    assert VOCABULARY.nearest("quantum") == []


def test_a_note_is_one_line_with_a_limit():
    assert VOCABULARY.note("m", ["a red dog"]) == ""
    words = [f"word{i}" for i in range(MAX_UNKNOWN + 2)]
    note = VOCABULARY.note("m", [" ".join(words)])
    assert "\n" not in note
    assert words[MAX_UNKNOWN - 1] in note
    assert words[MAX_UNKNOWN] not in note
    assert "and 2 more" in note
