"""CLIP's byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2021, section 2.4).

Text is NFC-normalised and lower-cased, runs of white space become one space, and it is split into words, single digits and runs of other
characters. Each word's bytes are written as 256 printable characters, the last one marked `</w>`, and the ranked merges are applied. The
vocabulary is 256 bytes, 256 final bytes, one entry per merge and two special tokens, so every text can be encoded.
"""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
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
MAX_WORD = 500  # characters; longer words are split, because the time for one grows with the square of its length
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    rf"|[\p{{L}}]{{1,{MAX_WORD}}}|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]{{1,{MAX_WORD}}}"
)
CLIP_MERGES = 49152 - 256 - 2  # the published file has more merges than the published models use


class Tokenizer:
    """Encodes text as token ids; equals transformers' `CLIPTokenizer` with the same files, up to words of `MAX_WORD` letters.

    `bos`, `eos`, `pad` and `comma` are ids; `max_length` is the text encoder's context length, including the begin and end tokens. The
    padding token depends on the model: CLIP-L pads with its end token, OpenCLIP's H and bigG with `!`, which has id 0. As in transformers
    the padding token is special, so a `!` in a prompt for these models gets the id of padding.

    Added words, such as those of textual inversion, are matched before splitting and in any case of letters; a word that begins and ends
    with a letter or digit only matches whole words. A word with several embedding vectors is stored as `<word>`, `<word>_1`, `<word>_2`,
    and `<word>` in a text is encoded as all of them.
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
        """Build from a vocabulary, its merges in order of rank, and added words with their ids.

        Raises:
            DaguerreError: a special token is missing, a merge is not in the vocabulary, or the added ids have a gap.
        """
        missing = [token for token in (BOS, EOS, pad) if token not in vocab]
        if missing:
            raise DaguerreError(f"The vocabulary lacks {', '.join(missing)}; a CLIP vocabulary has {BOS}, {EOS} and the padding token.")
        if max_length < 3:
            raise DaguerreError(f"max_length is {max_length}; it must be 3 or more, to hold the begin token, text and the end token.")
        try:
            model = models.BPE(vocab=dict(vocab), merges=list(merges), end_of_word_suffix=SUFFIX, unk_token=EOS)
        except Exception as error:  # the library raises bare Exceptions
            raise DaguerreError(f"The vocabulary and the merges do not match: {error}.") from error
        self.vocab, self.merges, self.max_length, self.pad_token = dict(vocab), list(merges), max_length, pad
        self.added = dict(sorted((added or {}).items(), key=lambda item: item[1]))
        self.bos, self.eos, self.pad, self.comma = vocab[BOS], vocab[EOS], vocab[pad], vocab.get("," + SUFFIX)
        self._backend = _backend(model)
        self._backend.add_special_tokens(list(dict.fromkeys([BOS, EOS, pad])))
        for word, number in self.added.items():
            self._backend.add_tokens([tokenizers.AddedToken(word, normalized=True, single_word=_is_whole_word(word))])
            if self._backend.token_to_id(word) != number:
                raise DaguerreError(f"The added word {word!r} has id {number}, but the next free id is {len(self)}.")
        self._names = {number: name for name, number in (self.vocab | self.added).items()}
        self._groups = {number: self._group(word) for word, number in self.added.items()}
        self._tails = {number for group in self._groups.values() for number in group[1:]}
        self._continued = {number for group in self._groups.values() for number in group[:-1]}

    @classmethod
    def clip(cls, *, pad: str = EOS) -> "Tokenizer":
        """The vocabulary of all published CLIP and OpenCLIP text encoders (49,408 tokens), which is part of this package."""
        path = resources.files("daguerre.conditioning") / "bpe_simple_vocab_16e6.txt.gz"
        with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
            merges = [_pair(line) for line in islice(lines, 1, 1 + CLIP_MERGES)]
        return cls(clip_vocabulary(merges), merges, pad=pad)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Read `vocab.json` and `merges.txt`, or `tokenizer.json` if these are missing, and `tokenizer_config.json` if it exists.

        Raises:
            DaguerreError: a file is missing or has the wrong format.
        """
        folder = Path(folder)
        try:
            return cls._read(folder)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise DaguerreError(
                f"The tokenizer in {folder} is not a valid CLIP tokenizer ({type(error).__name__}: {error}); download or save it again."
            ) from error

    @classmethod
    def _read(cls, folder: Path) -> "Tokenizer":
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocab = _json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
            added = {}
        elif (folder / "tokenizer.json").is_file():
            content = _json(folder / "tokenizer.json")
            vocab, listed = content["model"]["vocab"], content["model"]["merges"]
            merges = [_pair(merge) if isinstance(merge, str) else (merge[0], merge[1]) for merge in listed]
            added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        else:
            raise DaguerreError(f"{folder} has no tokenizer; it needs vocab.json with merges.txt, or tokenizer.json.")
        config = _json(folder / "tokenizer_config.json", default={})
        pad = _content(_json(folder / "special_tokens_map.json", default={}).get("pad_token") or config.get("pad_token") or EOS)
        added |= _json(folder / "added_tokens.json", default={})
        added |= {_content(token): int(number) for number, token in config.get("added_tokens_decoder", {}).items()}
        # transformers writes a huge length if it has none; every published text encoder has 77 positions.
        length = config.get("model_max_length") or 77
        return cls(
            vocab,
            merges,
            max_length=int(length) if length < 10**6 else 77,
            pad=pad,
            added={word: number for word, number in added.items() if word not in vocab},
        )

    def save(self, folder: str | Path) -> None:
        """Write the files that `from_folder` and transformers' `CLIPTokenizer` read; creates the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = {"bos_token": BOS, "eos_token": EOS, "pad_token": self.pad_token, "unk_token": EOS}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length, "do_lower_case": True, **special}
        if self.added:
            config["added_tokens_decoder"] = {
                str(number): {"content": word, "normalized": True, "single_word": _is_whole_word(word)}
                for word, number in self.added.items()
            }
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, content in (("vocab", self.vocab), ("tokenizer_config", config), ("special_tokens_map", special)):
            text = json.dumps(content, ensure_ascii=False, indent=None if name == "vocab" else 2)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    def __len__(self) -> int:
        """The number of ids including added words, the text encoder's `vocab_size`."""
        return self._backend.get_vocab_size()

    def with_words(self, vectors: Mapping[str, int]) -> "Tokenizer":
        """A tokenizer with added words, as a textual-inversion embedding needs.

        Args:
            vectors: for each word its number of embedding vectors. Each vector gets one new id; the ids follow the last one in this order,
                so the rows to append to the text encoder's token embedding have the same order.

        Raises:
            DaguerreError: the word exists already, or has more vectors than a chunk holds.
        """
        added = dict(self.added)
        for word, size in vectors.items():
            if word in self.vocab or word in added:
                raise DaguerreError(f"The tokenizer has the word {word!r} already; use another name, such as '<{word}>'.")
            if not 1 <= size <= self.max_length - 2:
                raise DaguerreError(f"{word!r} has {size} vectors; this tokenizer allows 1 to {self.max_length - 2}.")
            for n in range(size):
                added[f"{word}_{n}" if n else word] = len(self) + len(added) - len(self.added)
        return Tokenizer(self.vocab, self.merges, max_length=self.max_length, pad=self.pad_token, added=added)

    def groups(self, text: str) -> list[tuple[int, ...]]:
        """The ids of a text in groups that a chunk must not split: single ids, or all ids of an added word."""
        return [self._groups.get(number, (number,)) for number in self._backend.encode(text, add_special_tokens=False).ids]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens, truncation or padding."""
        return self._all_vectors(self._backend.encode(text, add_special_tokens=False).ids)

    def ends_word(self, number: int, following: int) -> bool:
        """Whether a word ends with this id; `following` is not used, because final tokens carry their own mark."""
        return self._names[number].endswith(SUFFIX) or (number in self._groups and number not in self._continued)

    def with_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """Begin, the ids (truncated), end and padding: `max_length` ids."""
        ids = [self.bos, *ids[: self.max_length - 2], self.eos]
        return ids + [self.pad] * (self.max_length - len(ids))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The int64 ids (B, max_length) of texts, truncated and padded, as a text encoder takes them."""
        texts = [texts] if isinstance(texts, str) else texts
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)  # on all cores
        rows = [self.with_special_tokens(self._all_vectors(each.ids)) for each in encoded]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The lower-case text of ids, with one space between words and without special tokens."""
        skipped = {self.bos, self.eos, self.pad} | self._tails
        names = (self._names[number] for number in ids if number not in skipped)
        text = "".join(f"{name} " if name in self.added else name for name in names).replace(SUFFIX, " ")
        to_byte = character_bytes()
        raw = b"".join(bytes([to_byte[c]]) if c in to_byte else c.encode() for c in text)
        return raw.decode("utf-8", errors="replace").strip()

    def _all_vectors(self, ids: Iterable[int]) -> list[int]:
        """The ids, with all ids of an added word in place of its first."""
        return [each for number in ids for each in self._groups.get(number, (number,))]

    def _group(self, word: str) -> tuple[int, ...]:
        """The ids of an added word and its further vectors, `<word>_1` and so on."""
        names = takewhile(self.added.__contains__, (f"{word}_{n}" for n in count(1)))
        return (self.added[word], *(self.added[name] for name in names))


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> Tokenizer:
    """Train a byte-pair tokenizer with CLIP's vocabulary layout on captions.

    Args:
        captions: the texts, iterated once.
        vocab_size: the maximum number of ids; the result has fewer if no more pairs occur at least twice.
        max_length: the text encoder's context length, including begin and end.

    Raises:
        DaguerreError: the vocabulary is too small for the 512 byte tokens and two special tokens.
    """
    if vocab_size < 514:
        raise DaguerreError(f"vocab_size is {vocab_size}; it must be 514 or more, for the byte tokens and the special tokens.")
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
    """The ids of tokens in CLIP's order: bytes, final bytes, merges by rank, begin, end."""
    letters = list(byte_characters().values())
    tokens = [*letters, *(letter + SUFFIX for letter in letters), *("".join(pair) for pair in merges), BOS, EOS]
    return {token: number for number, token in enumerate(tokens)}


@cache
def character_bytes() -> Mapping[str, int]:
    """The byte of each of the characters of `byte_characters`."""
    return {character: byte for byte, character in byte_characters().items()}


def byte_characters() -> dict[int, str]:
    """The printable character of each byte, in the order of CLIP's ids: printable Latin-1 characters, as themselves, come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _backend(model: models.BPE) -> tokenizers.Tokenizer:
    """A byte-pair model with CLIP's normalisation and word splitting."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


def _is_whole_word(word: str) -> bool:
    """Whether an added word matches only between other characters than letters and digits: if it begins and ends with one."""
    return word[:1].isalnum() and word[-1:].isalnum()


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.strip().partition(" ")
    return left, right


def _content(token: Any) -> str:
    """The text of a special token, which files store as a string or as an object with `content`."""
    return token["content"] if isinstance(token, dict) else token


def _json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DaguerreError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DaguerreError(f"{path} contains a JSON {type(content).__name__}, not an object.")
    return content
