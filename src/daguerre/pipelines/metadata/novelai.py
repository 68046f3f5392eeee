"""Read the settings that NovelAI writes, with its prompt syntax turned into that of a request.

    {a phrase}, [a phrase]     weights 1.05 and 1 / 1.05, multiplied for each further bracket
    1.5::a phrase::            a weight as a number, since version 4; a phrase without an end reaches to the end of the prompt
    (a phrase)                 plain text

The prompt syntax is that of docs.novelai.net, "Strengthening and weakening".
"""

import re
from collections.abc import Mapping
from typing import Any

from daguerre.pipelines.metadata.invokeai import MAX_PROMPT

FACTOR = 1.05
CLOSING = {"{": "}", "[": "]", "::": "::"}
_PIECE = re.compile(r"(?P<number>-?\d{0,4}\.?\d{1,4})::|::|[{}\[\]()]|[^{}\[\]():\d.\-]+|.", re.DOTALL)


def novelai_json(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of NovelAI's JSON; the weights of a prompt that is too long are listed."""
    changed: dict[str, Any] = {}
    for name in ("prompt", "uc"):
        if isinstance(text := values.get(name), str):
            if len(text) > MAX_PROMPT:
                changed[f"{name} weights"] = f"not read, because the prompt is longer than {MAX_PROMPT:,} characters"
            else:
                changed[name] = _converted(text)
    return {**values, **changed}


def _converted(text: str) -> str:
    """A prompt of NovelAI in the syntax of a request.

    A bracket that is never closed reaches to the end; a closing one alone is left out.
    """
    groups: list[tuple[str, float, list[str]]] = [("", 1.0, [])]  # the groups that are not closed yet: bracket, weight, texts
    for piece in _PIECE.finditer(text):
        written = piece[0]
        if piece["number"] is not None or written in ("{", "["):
            weight = float(piece["number"]) if piece["number"] is not None else FACTOR if written == "{" else 1 / FACTOR
            if piece["number"] is not None and groups[-1][0] == "::":  # a new number ends the one before
                _close(groups)
            groups.append((written if piece["number"] is None else "::", weight, []))
        elif written in CLOSING.values():
            if CLOSING.get(groups[-1][0]) == written:
                _close(groups)
        else:
            groups[-1][2].append(f"\\{written}" if written in "()\\" else written)
    while len(groups) > 1:
        _close(groups)
    return "".join(groups[0][2])


def _close(groups: list[tuple[str, float, list[str]]]) -> None:
    """Add the innermost group to the one around it, as a weighted text if it has any."""
    _, weight, texts = groups.pop()
    if text := "".join(texts):
        groups[-1][2].append(f"({text}:{f'{weight:.4f}'.rstrip('0').rstrip('.')})")
