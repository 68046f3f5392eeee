"""The tokenizer of a text encoder in a checkpoint: from its folder, from the metadata of a file, or the published one."""

from typing import Any

from daguerre.conditioning import Tokenizer, WordPiece
from daguerre.conditioning.tokenizer import EOS
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIPText
from daguerre.models.ldm_bert import LDMBert
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.original.detect import DetectedModel

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # part → its tokenizer's folder, and key among stored configs
OPEN_CLIP_PAD = "!"  # the token with id 0


def tokenizer_of(part: str, detected: DetectedModel) -> Tokenizer | WordPiece:
    """The tokenizer of a text encoder.

    Raises:
        DaguerreError: the tokenizer is damaged, or has more tokens than the text encoder.
    """
    encoder, folder, path = detected.networks[part], detected.file.path / TOKENIZERS[part], detected.file.path
    assert isinstance(encoder, CLIPText | LDMBert)
    stored = detected.stored_configs.get(TOKENIZERS[part])
    if folder.is_dir():
        is_bert = isinstance(encoder, LDMBert)
        return WordPiece.from_folder(folder, max_length=encoder.config.length) if is_bert else Tokenizer.from_folder(folder)
    try:
        tokenizer = _published(part, detected) if stored is None else _from_json(stored, encoder.config.length)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DaguerreError(f"'{path}' stores a damaged tokenizer ({type(error).__name__}: {error}). Convert its model again.") from error
    if len(tokenizer) > encoder.config.vocab_size:
        raise DaguerreError(
            f"'{path}' has a text encoder of {encoder.config.vocab_size} tokens and stores no tokenizer; the published one has "
            f"{len(tokenizer)}. Use the folder of the model, or convert it to a file again."
        )
    return tokenizer


def stored_tokenizer(part: str, detected: DetectedModel) -> Json | None:
    """What a single file has to store of a tokenizer: None if it is the published one of its family."""
    own, published = _to_json(tokenizer_of(part, detected)), _to_json(_published(part, detected))
    return None if own == published else own


def _published(part: str, detected: DetectedModel) -> Tokenizer | WordPiece:
    encoder = detected.networks[part]
    if isinstance(encoder, LDMBert):
        return WordPiece.bert(max_length=encoder.config.length)
    open_clip = part == "text_encoder_2" or (detected.family is not None and detected.family.name.startswith("sd2"))
    return Tokenizer.clip(pad=OPEN_CLIP_PAD if open_clip else EOS)


def _to_json(tokenizer: Tokenizer | WordPiece) -> Json:
    if isinstance(tokenizer, WordPiece):
        return {"vocab": list(tokenizer.vocab)}
    merges = [list(pair) for pair in tokenizer.merges]
    return {
        "vocab": tokenizer.vocab,
        "merges": merges,
        "max_length": tokenizer.max_length,
        "pad": tokenizer.pad_token,
        "added": tokenizer.added,
    }


def _from_json(stored: dict[str, Any], length: int) -> Tokenizer | WordPiece:
    if "merges" not in stored:
        return WordPiece(stored["vocab"], max_length=length)
    merges = [(left, right) for left, right in stored["merges"]]
    return Tokenizer(stored["vocab"], merges, max_length=stored["max_length"], pad=stored["pad"], added=stored["added"])
