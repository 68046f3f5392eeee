"""BERT's WordPiece, used by CompVis' text-to-image latent diffusion (Wu et al. 2016, arXiv:1609.08144; Devlin et al. 2019,
arXiv:1810.04805, section 3).

Text is lower-cased, accents are removed, and it is split at white space and punctuation. Each word is split from the left into the longest
pieces of the vocabulary; pieces after the first are marked `##`. A word that cannot be split completely becomes one unknown token.
"""

import gzip
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from daguerre.errors import DaguerreError

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
CONTINUED = "##"


class WordPiece:
    """Encodes text as token ids; equals transformers' `BertTokenizerFast` with the same vocabulary.

    `bos`, `eos`, `pad` and `comma` are ids; `max_length` is the text encoder's context length, including begin and end.
    """

    def __init__(self, vocab: Sequence[str], *, max_length: int = 77) -> None:
        """Build from the vocabulary, in the order of its ids. Raises DaguerreError if a special token is missing."""
        ids = {token: number for number, token in enumerate(vocab)}
        missing = [token for token in (PAD, UNKNOWN, BEGIN, END, MASK) if token not in ids]
        if missing:
            raise DaguerreError(f"The vocabulary lacks {', '.join(missing)}; a BERT vocabulary has these tokens.")
        self.vocab, self.max_length = tuple(vocab), max_length
        self.bos, self.eos, self.pad, self.comma = ids[BEGIN], ids[END], ids[PAD], ids.get(",")
        self._backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
        self._backend.normalizer = normalizers.BertNormalizer()
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.add_special_tokens([PAD, UNKNOWN, BEGIN, END, MASK])

    @classmethod
    def bert(cls, *, max_length: int = 77) -> "WordPiece":
        """The vocabulary of `bert-base-uncased` (30,522 tokens), which is part of this package."""
        path = resources.files("daguerre.conditioning") / "bert_uncased_vocab.txt.gz"
        with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
            return cls([line.rstrip("\n") for line in lines], max_length=max_length)

    @classmethod
    def from_folder(cls, folder: str | Path, *, max_length: int = 77) -> "WordPiece":
        """Read `vocab.txt`, or `tokenizer.json` if it is missing.

        Raises:
            DaguerreError: both are missing, or are not BERT's.
        """
        lines, content = Path(folder) / "vocab.txt", Path(folder) / "tokenizer.json"
        if lines.is_file():
            return cls(lines.read_text(encoding="utf-8").rstrip("\n").split("\n"), max_length=max_length)
        if not content.is_file():
            raise DaguerreError(f"'{folder}' has no BERT tokenizer; it needs vocab.txt or tokenizer.json.")
        try:
            ids = json.loads(content.read_text(encoding="utf-8"))["model"]["vocab"]
            return cls(sorted(ids, key=ids.__getitem__), max_length=max_length)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DaguerreError(f"'{content}' is not a valid BERT tokenizer ({error}); download it again.") from error

    def save(self, folder: str | Path) -> None:
        """Write the file that `from_folder` and transformers' `BertTokenizer` read."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "vocab.txt").write_text("\n".join(self.vocab) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.vocab)

    def groups(self, text: str) -> list[tuple[int, ...]]:
        """The ids of a text, grouped by word."""
        found: list[tuple[int, ...]] = []
        for number in self.encode(text):
            if found and self.vocab[number].startswith(CONTINUED):
                found[-1] = (*found[-1], number)
            else:
                found.append((number,))
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens, truncation or padding."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def ends_word(self, number: int, following: int) -> bool:
        """Whether a word ends with this id, given the id that follows."""
        return not self.vocab[following].startswith(CONTINUED)

    def with_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """Begin, the ids (truncated), end and padding: `max_length` ids."""
        ids = [self.bos, *ids[: self.max_length - 2], self.eos]
        return ids + [self.pad] * (self.max_length - len(ids))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The int64 ids (B, max_length) of texts, truncated and padded."""
        texts = [texts] if isinstance(texts, str) else texts
        return torch.tensor([self.with_special_tokens(self.encode(text)) for text in texts], dtype=torch.int64).reshape(-1, self.max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, with one space between words and without special tokens."""
        pieces = [self.vocab[number] for number in ids if number not in (self.bos, self.eos, self.pad)]
        return " ".join(pieces).replace(f" {CONTINUED}", "").removeprefix(CONTINUED)
