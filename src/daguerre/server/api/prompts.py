"""What a prompt means to the loaded model: tokens, words, and where it has errors."""

from typing import Any

from daguerre.conditioning import Conditioner, Prompt
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion


def prompt_report(model: LatentDiffusion | None, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """Tokens, words and warnings of a prompt; without a text encoder the count is 0."""
    report: dict[str, Any] = {"tokens": 0, "words": [], "unknown": [], "warnings": [], "error": None}
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
