"""BERT's tokenizer against transformers, and the conditioner that uses it."""

import random
from pathlib import Path

import pytest
import torch
import transformers

from daguerre.conditioning import LDMTextConditioner, Prompt, WordPiece
from daguerre.errors import DaguerreError
from daguerre.models.ldm_bert import LDMBert, LDMBertConfig


@pytest.fixture(scope="module")
def ours() -> WordPiece:
    return WordPiece.bert()


@pytest.fixture(scope="module")
def theirs(ours: WordPiece, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("bert")
    ours.save(folder)
    return transformers.BertTokenizerFast(str(folder / "vocab.txt"))  # pyright: ignore[reportAttributeAccessIssue]


def test_saving_and_loading_keeps_the_vocabulary(ours: WordPiece, tmp_path: Path):
    ours.save(tmp_path)
    assert len(ours) == 30522
    assert WordPiece.from_folder(tmp_path).vocab == ours.vocab
    (tmp_path / "vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(DaguerreError, match="a BERT vocabulary has these tokens"):
        WordPiece.from_folder(tmp_path)
    with pytest.raises(DaguerreError, match=r"needs vocab\.txt or tokenizer\.json"):
        WordPiece.from_folder(tmp_path / "nowhere")


def test_equals_transformers_on_random_text(ours: WordPiece, theirs):
    rng = random.Random(0)
    alphabet = [*"abcdefgh XYZ 0123 ,.!?'-_#[]() \t\n", *"éüñ ßŁ", *"漢字仮名 한국", *"\u0301\u200b\u00ad\u2028\ufffd\x00", *"😀👩‍🚀"]
    texts = ["", "a painting of a virus monster playing guitar", "Don't [MASK] ##this, naïve façade", "antidisestablishmentarianism " * 40]
    texts += ["".join(rng.choices(alphabet, k=rng.randrange(1, 60))) for _ in range(2000)]
    wanted = theirs(texts, truncation=True, max_length=77, padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(ours(texts), wanted)


def test_ids_are_grouped_by_word(ours: WordPiece):
    pieces = ours.groups("a guitarrist, playing")
    assert [ours.decode(group) for group in pieces] == ["a", "guitarrist", ",", "playing"]
    assert max(map(len, pieces)) > 1


def test_prompts_are_encoded_with_weights_chunks_and_words(ours: WordPiece):
    torch.manual_seed(0)
    tower = LDMBert(LDMBertConfig(width=32, layers=1, heads=2, head_width=8, mlp_width=64)).eval()
    conditioner = LDMTextConditioner(ours, tower).eval()
    with torch.no_grad():
        plain = conditioner(["a guitarrist"]).context
        assert torch.equal(plain, tower(ours(["a guitarrist"])))
        assert conditioner(["fish " * 100]).context.shape == (1, 154, 32)
        weighted = conditioner(["a (guitarrist:1.5)"]).context
    (line,) = Prompt.parse("a guitarrist").at(0, 1)
    _, word = conditioner.words(line)
    assert word.text == "guitarrist"
    assert len(word.positions) > 1
    torch.testing.assert_close(weighted[:, word.positions], 1.5 * plain[:, word.positions])


def test_a_text_encoder_with_too_few_tokens_is_refused(ours: WordPiece):
    with pytest.raises(DaguerreError, match="does not match the text encoder"):
        LDMTextConditioner(ours, LDMBert(LDMBertConfig(vocab_size=8192, width=8, layers=1, mlp_width=8)))
