"""The tokenizer against transformers, on real text and ten thousand random strings."""

import json
import random
import time
import unicodedata

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.conditioning.tokenizer import BOS, EOS, Tokenizer, byte_characters, clip_vocabulary, train_tokenizer
from daguerre.errors import DaguerreError


def random_strings(count: int) -> list[str]:
    """Seeded strings over all of Unicode's planes, with words, digits, controls, combining marks and special tokens in between."""
    rng = random.Random(20)
    assigned = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    latin = [chr(c) for c in range(32, 0x250)]
    pieces = ["don't", "WE'LL", " \t\n ", "  ", "İstanbul", "ﬁ", "e\u0301", "\u1e9b\u0323", "한국", "ÅÅ", "12345", "<|endoftext|>"]
    pieces += ["<|STARTOFTEXT|>", "👩‍🚀", "🏳️‍🌈", "\u200b", "\x00", "\x85", "\u2028", "\u00a0", "<|endoftext", "'S", "!!", "a,b", "ΣΑΣ"]
    choices = (lambda: rng.choice(assigned), lambda: rng.choice(latin), lambda: rng.choice(pieces), lambda: rng.choice(" abcdefghij'"))
    return ["".join(rng.choices(choices, weights=(3, 4, 1, 6))[0]() for _ in range(rng.randrange(25))) for _ in range(count)]


@pytest.mark.parametrize("which", ["small", "clip", "padded with zero"])
def test_equals_transformers_on_random_unicode(which, small, clip, tmp_path):
    ours = {"small": small, "clip": clip, "padded with zero": Tokenizer.clip(pad="!")}[which]
    ours.save(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = random_strings(10_000)
    expected = theirs(texts, padding="max_length", truncation=True).input_ids
    wrong = [text for text, row, other in zip(texts, ours(texts).tolist(), expected, strict=True) if row != other]
    assert not wrong, wrong[:5]
    assert ours.max_length == theirs.model_max_length
    assert (ours.bos, ours.eos, ours.pad, len(ours)) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, len(theirs))


def test_the_published_vocabulary_gives_known_ids(clip):
    assert len(clip) == 49408
    assert (clip.bos, clip.eos, clip.pad) == (49406, 49407, 49407)
    assert clip.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert clip.encode("Hello, World!") == [3306, 267, 1002, 256]


@pytest.mark.parametrize("name", ["small", "clip"])
def test_saving_and_loading_keeps_the_tokenizer(name, request, tmp_path):
    ours = request.getfixturevalue(name)
    ours.save(tmp_path / "a" / "b")
    again = Tokenizer.from_folder(tmp_path / "a" / "b")
    assert (again.vocab, again.merges, again.max_length, again.pad) == (ours.vocab, ours.merges, ours.max_length, ours.pad)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "a" / "b").encode("a red apple") == [
        ours.bos,
        *ours.encode("a red apple"),
        ours.eos,
    ]


def test_reads_the_single_file_that_transformers_writes(small, tmp_path):
    small.save(tmp_path / "ours")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
    theirs.add_tokens(["<my-cat>", "<my-dog>"])
    theirs.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "vocab.json").exists()
    again = Tokenizer.from_folder(tmp_path / "theirs")
    assert again.added == {"<my-cat>": len(small), "<my-dog>": len(small) + 1}
    for text in ("a <my-cat> and <my-dog>", "a<my-cat>b", "<MY-CAT>"):
        assert again.encode(text) == theirs.encode(text, add_special_tokens=False)
    again.save(tmp_path / "again")
    opened = transformers.CLIPTokenizer.from_pretrained(tmp_path / "again")
    assert opened.encode("a <my-dog>", add_special_tokens=False) == again.encode("a <my-dog>")


def test_training_learns_frequent_words_and_keeps_every_byte(small):
    assert len(small) <= 700
    for word in ("red", "apple", "background", "orange"):
        assert len(small.encode(word)) == 1, word
    assert len(byte_characters()) == len(set(byte_characters().values())) == 256
    assert {small.vocab[c] for c in byte_characters().values()} == set(range(256))
    assert (small.vocab[BOS], small.vocab[EOS]) == (len(small) - 2, len(small) - 1)
    tiny = Tokenizer(clip_vocabulary([]), [])
    assert tiny.decode(tiny.encode("日本 ünïcode")) == "日本 ünïcode"


def test_rows_are_truncated_and_padded(small):
    rows = small(["a " * 100, "", "red apple"]).tolist()
    assert all(len(row) == 32 for row in rows)
    assert rows[0] == [small.bos, *small.encode("a") * 30, small.eos]
    assert rows[1] == [small.bos] + [small.eos] * 31
    assert small([]).shape == (0, 32)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="|Σ")))
@settings(max_examples=200, deadline=None)
def test_decoding_inverts_encoding(text):
    """Decoding gives the normalised text, apart from white space."""
    tiny = Tokenizer(clip_vocabulary([]), [])
    want = "".join(unicodedata.normalize("NFC", text).lower().split())
    assert "".join(tiny.decode(tiny.encode(text)).split()) == want


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no tokenizer"),
        ({"vocab.json": "{", "merges.txt": ""}, "vocab.json cannot be read as JSON"),
        ({"vocab.json": "[]", "merges.txt": ""}, "not an object"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "lacks <|startoftext|>, <|endoftext|>"),
        ({"vocab.json": json.dumps({BOS: 0, EOS: 1}), "merges.txt": "#version: 0.2\na b\n"}, "do not match"),
        ({"vocab.json": json.dumps({BOS: 0, EOS: 1}), "merges.txt": "", "added_tokens.json": '{"<x>": 9}'}, "has id 9"),
        (
            {"vocab.json": json.dumps({BOS: 0, EOS: 1}), "merges.txt": "", "tokenizer_config.json": '{"model_max_length": 2}'},
            "max_length is 2",
        ),
        ({"tokenizer.json": "{}"}, "not a valid CLIP tokenizer"),
        ({"tokenizer.json": '{"model": {"vocab": {}, "merges": [["a"]]}}'}, "not a valid CLIP tokenizer"),
        (
            {"vocab.json": json.dumps({BOS: 0, EOS: 1}), "merges.txt": "", "tokenizer_config.json": '{"pad_token": 3}'},
            "not a valid CLIP tokenizer",
        ),
    ],
)
def test_invalid_folders_are_refused(files, words, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DaguerreError, match=words.replace("|", r"\|")):
        Tokenizer.from_folder(tmp_path)


def test_a_too_small_vocabulary_is_refused():
    with pytest.raises(DaguerreError, match="514"):
        train_tokenizer(["a red apple"], 513, 32)


def test_added_words_with_several_vectors(small, tmp_path):
    ours = small.with_words({"<My-Cat>": 3, "zorb": 1})
    first = len(small)
    assert len(ours) == first + 4
    assert len(small) == first, "the original tokenizer is unchanged"
    assert ours.encode("<my-cat>") == [first, first + 1, first + 2]
    assert ours.groups("a<my-cat> Zorb") == [*ours.groups("a"), (first, first + 1, first + 2), (first + 3,)]
    assert ours.encode("zorba") == small.encode("zorba"), "an added word of letters matches whole words only"
    assert ours.decode(ours.encode("a <my-cat> zorb pizza")) == "a <My-Cat> zorb pizza"
    ours.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).encode("red <my-cat> zorb zorba") == ours.encode("red <my-cat> zorb zorba")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("red zorb zorba", add_special_tokens=False) == ours.encode("red zorb zorba")


@pytest.mark.parametrize(("name", "vectors", "words"), [("red</w>", 1, "has the word"), ("<x>", 0, "1 to 30"), ("<x>", 31, "1 to 30")])
def test_invalid_added_words_are_refused(name, vectors, words, small):
    with pytest.raises(DaguerreError, match=words):
        small.with_words({name: vectors})


@pytest.mark.parametrize("letters", ["a", "abcdefghijklmnopqrstuvwxyz", "é", "!?"])
def test_the_time_for_a_long_word_grows_with_its_length(letters: str, clip: Tokenizer):
    """In one piece, a word of this length takes about ten seconds."""
    word = "".join(random.Random(0).choices(letters, k=250_000))
    start = time.process_time()
    ids = clip.encode(f"{word} cat")
    assert time.process_time() - start < 1
    assert ids[-1] == clip.encode("cat")[0]
    assert clip.decode(ids).replace(" ", "") == f"{word}cat"
