"""Read the settings that InvokeAI writes, with its prompt syntax turned into that of a request.

    word++, (a phrase)--, (a phrase)1.3, "a phrase"+     weights: 1.1 for each plus, 0.9 for each minus, or the number
    (a phrase), [a phrase]                               plain text; before version 3, square brackets hold negative prompts
    (a b).swap(c), ("a", "b").blend(1, 1), ….and()       not supported; listed by name

The prompt syntax is that of the library compel (github.com/damian0815/compel, doc/syntax.md).
"""

import re
from collections.abc import Mapping
from typing import Any

MORE, LESS = 1.1, 0.9  # the factor of one plus, and of one minus
MAX_SIGNS = 100  # more multiply to no more
MAX_PROMPT = 1 << 16  # characters of a prompt whose weights are read
_FUNCTION = re.compile(r"\.(swap|blend|and)\(")
_PIECE = re.compile(
    r"""\\.|\(|\)(?P<factor>\++|-+|\d{0,4}\.?\d{1,4})?|(?P<phrase>"[^"]*"|[\w']+(?:-[\w']+)*)(?P<signs>(?:\++|-+)(?=[\s,.;:!?)\]]|\Z))?|.""",
    re.DOTALL,
)


def invokeai_json(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of InvokeAI 3 and newer, from its JSON."""
    return _with_weights(with_counted_clip_skip(values), "positive_prompt", "negative_prompt")


def invokeai_2(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of InvokeAI 2, whose "model" is a family, and whose image is an object of its own."""
    image = values.get("image")
    renamed = {"model_weights": "model", "model": "model family"} if values.get("model_weights") else {}
    outer = {renamed.get(name, name): value for name, value in values.items() if name != "image"}
    return _with_bracketed_negative(outer | (image if isinstance(image, dict) else {}))


def invokeai_command(text: str) -> Mapping[str, Any]:
    """The settings of the command line of InvokeAI 1 and 2."""
    return _with_bracketed_negative(_command_line(text))


def with_counted_clip_skip(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of InvokeAI and diffusers, whose clip_skip counts the skipped layers; that of a request counts the last layer as 1."""
    skipped = values.get("clip_skip")
    return {**values, "clip_skip": skipped + 1} if type(skipped) is int else values


def joined_prompt(value: Any) -> str:
    """A prompt, which may be a list of weighted parts in early versions of InvokeAI.

    Raises:
        TypeError: it is anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("prompt"), str) for part in value):
        return " AND ".join(part["prompt"] for part in value)
    raise TypeError(value)


def _with_weights(values: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The settings with the prompts of these names in the syntax of a request; functions in them are listed."""
    changed: dict[str, Any] = {}
    for name in names:
        if isinstance(text := values.get(name), str):
            if found := _FUNCTION.search(text):
                changed[f"{name} function"] = f"{found[1]}() of InvokeAI's prompt syntax"
            elif len(text) > MAX_PROMPT:
                changed[f"{name} weights"] = f"not read, because the prompt is longer than {MAX_PROMPT:,} characters"
            else:
                changed[name] = _converted(text)
    return {**values, **changed}


def _converted(text: str) -> str:
    """A prompt of InvokeAI in the syntax of a request."""
    groups: list[list[str]] = [[]]  # the groups that are not closed yet
    for piece in _PIECE.finditer(text):
        written = piece[0]
        if written == "(":
            groups.append([])
            continue
        if written.startswith(")") and len(groups) > 1:
            written = _weighted("".join(groups.pop()), piece["factor"])
        elif piece["signs"]:
            written = _weighted(piece["phrase"].strip('"'), piece["signs"])
        elif written[0] in ")[]":
            written = f"\\{written}"
        groups[-1].append(written)
    return "\\(".join("".join(group) for group in groups)


def _weighted(text: str, factor: str | None) -> str:
    """A phrase with a weight: signs or a number; None for no weight."""
    if factor is None:
        return text
    signs = {"+": MORE, "-": LESS}
    number = signs[factor[0]] ** min(len(factor), MAX_SIGNS) if factor[0] in signs else float(factor)
    return f"({text}:{f'{number:.4f}'.rstrip('0').rstrip('.')})"


def _with_bracketed_negative(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of InvokeAI before version 3, in which a prompt may hold negative prompts in square brackets."""
    try:
        prompt = joined_prompt(values.get("prompt"))
    except TypeError:
        return values
    negatives = re.findall(r"(?<!\\)\[([^\[\]]*)\]", prompt)
    if not negatives or values.get("negative_prompt"):
        return _with_weights({**values, "prompt": prompt}, "prompt", "negative_prompt")
    positive = " ".join(re.sub(r"(?<!\\)\[[^\[\]]*\]", " ", prompt).split())
    return _with_weights({**values, "prompt": positive, "negative_prompt": " ".join(negatives)}, "prompt", "negative_prompt")


def _command_line(text: str) -> dict[str, str]:
    """The settings of a text such as `"a fox" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms`, in which blanks before values are optional."""
    text = text.strip()
    quoted = text.startswith('"')
    end = re.search(r'"\s+(?=-)|"$' if quoted else r"\s(?=-{1,2}[a-zA-Z])", text[1:])
    if end is None:
        return {}
    prompt, options = text[quoted : end.start() + 1], text[end.end() + 1 :]
    names = {"s": "steps", "S": "seed", "W": "width", "H": "height", "C": "cfg_scale", "A": "sampler", "m": "sampler"}
    values, name = {"prompt": prompt.strip()}, ""
    for word in options.split():
        if option := re.fullmatch(r"--([a-zA-Z][\w-]*)=?(.*)|-([a-zA-Z])(.*)", word):
            name = option[1] or names.get(option[3], f"-{option[3]}")
            values[name] = option[2] or option[4] or ""
        elif name:
            values[name] = f"{values[name]} {word}".strip()
    return {name: value or "on" for name, value in values.items()}
