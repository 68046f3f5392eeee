"""Byte-level byte-pair encoding as CLIP does it (Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2021, section 2.4).

Text is NFC-normalised, its white space folded and its letters lowered; it is split into words, single digits and runs of other
signs; each word's bytes become 256 printable characters, the last one marked `</w>`, and the ranked merges are applied. The
vocabulary is 256 bytes, 256 final bytes, one entry per merge, then the two special tokens: nothing is ever unknown.
"""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from daguerre.errors import DaguerreError

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
SUFFIX = "</w>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MERGES = 49152 - 256 - 2  # the published file lists more than the published models use


class Tokenizer:
    """Text to token ids and rows of ids, equal to what transformers' `CLIPTokenizer` makes of the same files.

    `bos`, `eos`, `pad` and `comma` are ids, `max_length` is the window of the text tower in tokens, begin and end included. The padding
    token differs by family: CLIP-L pads with its end token, OpenCLIP's H and bigG with `!`, which has id 0. As in transformers the
    padding token is special, so a `!` in a prompt for these reads as padding's id and not as the word.

    Added words are found before splitting, whatever their case; one of letters and digits alone only where it stands alone. A word
    that was learned as several vectors is `<word>`, `<word>_1`, `<word>_2`, as the field writes it, and `<word>` reads as all of them.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        max_length: int = 77,
        pad: str = EOS,
        added: Mapping[str, int] | None = None,
    ) -> None:
        """Build from a vocabulary, its ranked merges, and further whole words with their ids.

        Raises:
            DaguerreError: if a special token is missing, a merge is not in the vocabulary, or an added id leaves a gap.
        """
        missing = [token for token in (BOS, EOS, pad) if token not in vocab]
        if missing:
            raise DaguerreError(f"The vocabulary lacks {', '.join(missing)}; a CLIP vocabulary holds {BOS}, {EOS} and the padding token.")
        if max_length < 3:
            raise DaguerreError(f"A window of {max_length} tokens has no place for text; give 3 or more.")
        try:
            model = models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix=SUFFIX, unk_token=EOS)
        except Exception as error:  # the library raises bare Exceptions
            raise DaguerreError(f"Vocabulary and merges do not belong together: {error}.") from error
        self.vocab, self.merges, self.max_length, self.pad_token = dict(vocab), list(merges), max_length, pad
        self.added = dict(sorted((added or {}).items(), key=lambda item: item[1]))
        self.bos, self.eos, self.pad, self.comma = vocab[BOS], vocab[EOS], vocab[pad], vocab.get("," + SUFFIX)
        self._backend = _backend(model)
        self._backend.add_special_tokens(list(dict.fromkeys([BOS, EOS, pad])))
        for word, number in self.added.items():
            self._backend.add_tokens([tokenizers.AddedToken(word, normalized=True, single_word=word.isalnum())])
            if self._backend.token_to_id(word) != number:
                raise DaguerreError(f"The added word {word!r} asks for id {number}, but the next free one is {len(self)}.")
        self._names = {number: name for name, number in (self.vocab | self.added).items()}
        self._groups = {number: self._group(word) for word, number in self.added.items()}
        self._tails = {number for group in self._groups.values() for number in group[1:]}
        self._continued = {number for group in self._groups.values() for number in group[:-1]}

    @classmethod
    def clip(cls, *, pad: str = EOS) -> "Tokenizer":
        """The vocabulary of every published CLIP and OpenCLIP text tower (49,408 tokens), which lies inside this package."""
        path = resources.files("daguerre.conditioning") / "bpe_simple_vocab_16e6.txt.gz"
        with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
            merges = [_pair(line) for line in islice(lines, 1, 1 + CLIP_MERGES)]
        return cls(clip_vocabulary(merges), merges, pad=pad)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Read `vocab.json` and `merges.txt`, or `tokenizer.json` where these are missing, with `tokenizer_config.json` beside.

        Raises:
            DaguerreError: if a file is missing or cannot be read as what its name says.
        """
        folder = Path(folder)
        try:
            return cls._read(folder)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise DaguerreError(
                f"The tokenizer in {folder} is not as CLIP's files are ({type(error).__name__}: {error}); fetch or save it again."
            ) from error

    @classmethod
    def _read(cls, folder: Path) -> "Tokenizer":
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocab = _json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
            added = {}
        elif (folder / "tokenizer.json").is_file():
            whole = _json(folder / "tokenizer.json")
            vocab, listed = whole["model"]["vocab"], whole["model"]["merges"]
            merges = [_pair(merge) if isinstance(merge, str) else (merge[0], merge[1]) for merge in listed]
            added = {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
        else:
            raise DaguerreError(f"{folder} holds no tokenizer: neither vocab.json with merges.txt nor tokenizer.json.")
        config = _json(folder / "tokenizer_config.json", default={})
        pad = _content(_json(folder / "special_tokens_map.json", default={}).get("pad_token") or config.get("pad_token") or EOS)
        added |= _json(folder / "added_tokens.json", default={})
        added |= {_content(token): int(number) for number, token in config.get("added_tokens_decoder", {}).items()}
        # A length too large to be meant stands in files whose writer knew none; every published tower has 77 places.
        length = config.get("model_max_length") or 77
        return cls(
            vocab,
            merges,
            max_length=int(length) if length < 10**6 else 77,
            pad=pad,
            added={word: number for word, number in added.items() if word not in vocab},
        )

    def save(self, folder: str | Path) -> None:
        """Write the files that `from_folder` and transformers' `CLIPTokenizer` read; the folder is made if it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = {"bos_token": BOS, "eos_token": EOS, "pad_token": self.pad_token, "unk_token": EOS}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length, "do_lower_case": True, **special}
        if self.added:
            config["added_tokens_decoder"] = {
                str(number): {"content": word, "normalized": True, "single_word": word.isalnum()} for word, number in self.added.items()
            }
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, content in (("vocab", self.vocab), ("tokenizer_config", config), ("special_tokens_map", special)):
            text = json.dumps(content, ensure_ascii=False, indent=None if name == "vocab" else 2)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    def __len__(self) -> int:
        """The number of ids, added words included; the text tower's `vocab_size`."""
        return self._backend.get_vocab_size()

    def with_words(self, vectors: Mapping[str, int]) -> "Tokenizer":
        """A tokenizer that also knows these words, each read as so many new ids, which follow the last one in the order given.

        Raises:
            DaguerreError: if a word is known already, or has more vectors than a window holds.
        """
        added = dict(self.added)
        for word, wanted in vectors.items():
            if word in self.vocab or word in added:
                raise DaguerreError(f"The tokenizer knows {word!r} already; give the learned word another name, such as '<{word}>'.")
            if not 1 <= wanted <= self.max_length - 2:
                raise DaguerreError(f"{word!r} has {wanted} vectors; a window of this tokenizer holds 1 to {self.max_length - 2}.")
            for n in range(wanted):
                added[f"{word}_{n}" if n else word] = len(self) + len(added) - len(self.added)
        return Tokenizer(self.vocab, self.merges, max_length=self.max_length, pad=self.pad_token, added=added)

    def groups(self, text: str) -> list[tuple[int, ...]]:
        """The ids of a text, those together that must not be parted: one each, but all of a learned word."""
        return [self._groups.get(number, (number,)) for number in self._backend.encode(text, add_special_tokens=False).ids]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without begin, end, cut or padding."""
        return self._all_vectors(self._backend.encode(text, add_special_tokens=False).ids)

    def ends_word(self, number: int, following: int) -> bool:
        """Whether a word ends with this id, which it shows itself."""
        return self._names[number].endswith(SUFFIX) or (number in self._groups and number not in self._continued)

    def with_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """One window: begin, the ids as far as they fit, end, padding; `max_length` ids in all."""
        ids = [self.bos, *ids[: self.max_length - 2], self.eos]
        return ids + [self.pad] * (self.max_length - len(ids))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows (B, max_length) of int64 ids, each text cut to the window and padded: what a text tower is trained on."""
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)  # on all cores
        rows = [self.with_special_tokens(self._all_vectors(each.ids)) for each in encoded]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The lower-case text of ids, words apart by one space; special tokens are left out."""
        silent = {self.bos, self.eos, self.pad} | self._tails
        names = (self._names[number] for number in ids if number not in silent)
        text = "".join(f"{name} " if name in self.added else name for name in names).replace(SUFFIX, " ")
        to_byte = {character: byte for byte, character in byte_characters().items()}
        raw = b"".join(bytes([to_byte[c]]) if c in to_byte else c.encode() for c in text)
        return raw.decode("utf-8", errors="replace").strip()

    def _all_vectors(self, ids: Iterable[int]) -> list[int]:
        """The ids, each learned word's further vectors after its first."""
        return [each for number in ids for each in self._groups.get(number, (number,))]

    def _group(self, word: str) -> tuple[int, ...]:
        """The ids of an added word and of the further vectors that carry its name and a number."""
        names = takewhile(self.added.__contains__, (f"{word}_{n}" for n in count(1)))
        return (self.added[word], *(self.added[name] for name in names))


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> Tokenizer:
    """Learn the merges that shorten the captions most, in CLIP's layout; frequent words become one token.

    Args:
        captions: the texts; read once.
        vocab_size: the most ids there may be; fewer where the captions give no more pairs that occur twice.
        max_length: the window of the text tower in tokens, begin and end included.

    Raises:
        DaguerreError: if the vocabulary is too small for the 512 bytes and two special tokens.
    """
    if vocab_size < 514:
        raise DaguerreError(f"A vocabulary of {vocab_size} tokens is too small: bytes and special tokens alone are 514.")
    backend = _backend(models.BPE(end_of_word_suffix=SUFFIX))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=list(byte_characters().values()),
        end_of_word_suffix=SUFFIX,
    )
    backend.train_from_iterator(captions, trainer)
    learned = json.loads(backend.to_str())["model"]["merges"]
    merges = [(left, right) for left, right in learned[: vocab_size - 514]]
    return Tokenizer(clip_vocabulary(merges), merges, max_length=max_length)


def clip_vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token to id in CLIP's order: bytes, final bytes, merges by rank, begin, end."""
    letters = list(byte_characters().values())
    tokens = [*letters, *(letter + SUFFIX for letter in letters), *("".join(pair) for pair in merges), BOS, EOS]
    return {token: number for number, token in enumerate(tokens)}


def byte_characters() -> dict[int, str]:
    """Byte to printable character, in the order of CLIP's ids: printable Latin-1 stands for itself and comes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _backend(model: models.BPE) -> tokenizers.Tokenizer:
    """CLIP's normalisation and word splitting around a byte-pair model."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.strip().partition(" ")
    return left, right


def _content(token: Any) -> str:
    """A special token is written as text, or as an object that holds it."""
    return token["content"] if isinstance(token, dict) else token


def _json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DaguerreError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DaguerreError(f"{path} holds {type(content).__name__}, not an object with names.")
    return content
