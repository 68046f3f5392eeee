"""WordPiece as BERT does it, which the first text-to-image latent diffusion reads (Wu et al. 2016, arXiv:1609.08144; Devlin et al. 2019,
arXiv:1810.04805, section 3).

Letters are lowered and lose their accents; the text is split at white space and punctuation; each word is cut from the left into the
longest pieces that the vocabulary knows, the later ones marked `##`. A word with a piece that it does not know is unknown as a whole.
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
    """Text to rows of ids, equal to what transformers' `BertTokenizerFast` makes of the same vocabulary.

    `bos`, `eos` and `pad` are ids, `comma` the comma's, `max_length` is the window of the text tower, begin and end included.
    """

    def __init__(self, vocab: Sequence[str], *, max_length: int = 77) -> None:
        """Build from the vocabulary in the order of its ids.

        Raises:
            DaguerreError: a special token is missing.
        """
        ids = {token: number for number, token in enumerate(vocab)}
        missing = [token for token in (PAD, UNKNOWN, BEGIN, END, MASK) if token not in ids]
        if missing:
            raise DaguerreError(f"The vocabulary lacks {', '.join(missing)}, so it is not BERT's.")
        self.vocab, self.max_length = tuple(vocab), max_length
        self.bos, self.eos, self.pad, self.comma = ids[BEGIN], ids[END], ids[PAD], ids.get(",")
        self._backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
        self._backend.normalizer = normalizers.BertNormalizer()
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._backend.add_special_tokens([PAD, UNKNOWN, BEGIN, END, MASK])

    @classmethod
    def bert(cls, *, max_length: int = 77) -> "WordPiece":
        """The vocabulary of BERT's English models without capitals (30,522 pieces), which lies inside this package."""
        path = resources.files("daguerre.conditioning") / "bert_uncased_vocab.txt.gz"
        with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
            return cls([line.rstrip("\n") for line in lines], max_length=max_length)

    @classmethod
    def from_folder(cls, folder: str | Path, *, max_length: int = 77) -> "WordPiece":
        """Read `vocab.txt`, or `tokenizer.json` where it is missing.

        Raises:
            DaguerreError: both are missing, or are not BERT's.
        """
        lines, whole = Path(folder) / "vocab.txt", Path(folder) / "tokenizer.json"
        if lines.is_file():
            return cls(lines.read_text(encoding="utf-8").rstrip("\n").split("\n"), max_length=max_length)
        if not whole.is_file():
            raise DaguerreError(f"'{folder}' holds no tokenizer of this model: neither vocab.txt nor tokenizer.json.")
        try:
            ids = json.loads(whole.read_text(encoding="utf-8"))["model"]["vocab"]
            return cls(sorted(ids, key=ids.__getitem__), max_length=max_length)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DaguerreError(f"'{whole}' is no tokenizer that can be read ({error}).") from error

    def save(self, folder: str | Path) -> None:
        """Write the file that `from_folder` and transformers' `BertTokenizer` read."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "vocab.txt").write_text("\n".join(self.vocab) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.vocab)

    def groups(self, text: str) -> list[tuple[int, ...]]:
        """The ids of a text, those of one word together."""
        found: list[tuple[int, ...]] = []
        for number in self.encode(text):
            if found and self.vocab[number].startswith(CONTINUED):
                found[-1] = (*found[-1], number)
            else:
                found.append((number,))
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without begin, end, cut or padding."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def ends_word(self, number: int, following: int) -> bool:
        """Whether a word ends with this id, the other coming after it."""
        return not self.vocab[following].startswith(CONTINUED)

    def with_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """One window: begin, the ids as far as they fit, end, padding; `max_length` ids in all."""
        ids = [self.bos, *ids[: self.max_length - 2], self.eos]
        return ids + [self.pad] * (self.max_length - len(ids))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows (B, max_length) of int64 ids, each text cut to the window and padded."""
        return torch.tensor([self.with_special_tokens(self.encode(text)) for text in texts], dtype=torch.int64).reshape(-1, self.max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, words apart by one space; begin, end and padding are left out."""
        pieces = [self.vocab[number] for number in ids if number not in (self.bos, self.eos, self.pad)]
        return " ".join(pieces).replace(f" {CONTINUED}", "").removeprefix(CONTINUED)
