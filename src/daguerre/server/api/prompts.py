"""What a prompt means to the loaded model: tokens, words, and where it has errors."""

import re
from typing import Any

from daguerre.conditioning import Conditioner, Prompt
from daguerre.conditioning.syntax import split_tags
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.weights.vocabulary import Vocabulary


def prompt_report(model: LatentDiffusion | None, vocabulary: Vocabulary | None, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """Tokens, words and warnings of a prompt, and the words that a vocabulary lacks; without a text encoder the count is 0."""
    unknown = unknown_words(vocabulary, prompt) if vocabulary else []
    report: dict[str, Any] = {"tokens": 0, "words": [], "unknown": unknown, "warnings": [], "error": None}
    try:
        parsed = Prompt.parse(prompt)
        Prompt.parse(negative_prompt, composed=False)
        lines = parsed.at(0, 1)
    except DaguerreError as error:
        return {**report, "error": {"at": getattr(error, "at", None), "message": str(error)}}
    report["warnings"] = [{"at": warning.at, "message": warning.message} for warning in parsed.warnings]
    if model is None or not isinstance(model.conditioner, Conditioner):
        return report
    words = [word for line in lines for word in model.conditioner.words(line)]
    report["words"] = [word.text for word in words if any(sign.isalnum() for sign in word.text)]
    report["tokens"] = sum(len(word.positions) for word in words)
    return report


# What stands in a prompt and is no word: weights and shares of the steps ("(cat:1.2)", "[cat:dog:0.5]", "cat :1.5 AND dog"), AND, BREAK.
_SYNTAX = re.compile(r":\s*[-+]?\d*\.?\d+\s*(?=[])]|AND\b|$)|\bAND\b|\bBREAK\b")


def unknown_words(vocabulary: Vocabulary, prompt: str) -> list[dict[str, Any]]:
    """The words of a prompt that no training caption has, where they stand, and the nearest known ones. Tags are no words."""
    found = []
    text = _SYNTAX.sub(lambda match: " " * len(match[0]), prompt)
    for word in vocabulary.unknown([split_tags(text)[0]]):
        nearest = vocabulary.nearest(word)
        places = re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
        found += [{"word": word, "start": place.start(), "end": place.end(), "nearest": nearest} for place in places]
    return found
