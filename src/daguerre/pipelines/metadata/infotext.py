"""Parse the settings text that web UIs write below a prompt.

    a red apple
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Hashes: {"model": "00aa"}, Lora hashes: "ink: 1, fox: 2"

The settings may come in any order, in one line with the prompt or each in its own line. Values may be quoted or JSON. Text that follows the
settings is returned under its own names.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

# The settings by which the text is recognized, reduced to letters and digits, and what their values look like.
NUMBER = r"-?\d+(\.\d*)?|nan|inf"
CORE: Mapping[str, str] = {
    **dict.fromkeys(("steps", "seed", "cfgscale", "guidancescale"), NUMBER),
    "size": r"\d+\s*[x×]\s*\d+",
    "sampler": r"\S.*",
    "scheduletype": r"\S.*",
}
# Other names by which settings may begin, and beginnings of such names.
STARTS = {*CORE, "model", "modelhash", "version", "clipskip", "strength", "seedmode", "hashes", "rng", "ensd", "eta", "app"}
START_PREFIXES = "vae", "lora", "tihashes", "denoising", "hires", "civitai", "variation", "controlnet", "adetailer", "refiner", "firstpass"
MAX_INFOTEXT = 1 << 18  # characters of a text that is read
MAX_JSON = 1 << 14  # characters of a JSON value
NAME = r"[^\W_][\w /\-]{0,40}"
_PAIR = re.compile(rf"[ \t]*({NAME}):[ \t]*")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])*"', re.DOTALL)
_COMMA = re.compile(r"[ \t]*(?:,[ \t]*|(?=\n)|$)")
_VALUE_END = re.compile(rf"\n|,[ \t]*(?={NAME}:)|,[ \t]*(?=\n|$)")
_NEGATIVE_LINE = re.compile(r"^[ \t]*negative prompt:[ \t]*", re.IGNORECASE | re.MULTILINE)
_NEGATIVE_INLINE = re.compile(r"(?<=[\s.,;])[Nn]egative [Pp]rompt:[ \t]*")
_PROMPT_LABEL = re.compile(r"^\s*(positive )?prompt:", re.IGNORECASE)


def parse_infotext(text: str) -> dict[str, str] | None:
    """The prompts, settings and further texts by name; None if the text has no settings."""
    if len(text) > MAX_INFOTEXT:
        return None
    text = re.sub(r"\r\n?", "\n", text.strip("\ufeff\0 \t\r\n"))
    found = _find_settings(text, r"^[ \t]*")
    inline = found is None
    if found is None and (found := _find_settings(text, r"(?<=[\s.,;])")) is None:
        return None
    start, end, pairs = found
    prompt, negative = _prompts(text[:start], draw_things="Seed Mode" in pairs or "Guidance Scale" in pairs)
    if inline:
        prompt, negative = prompt.removesuffix("."), negative.removesuffix(".")
    extra = _extra_texts(text[end:], pairs)
    for texts in (pairs, extra):
        prompt = prompt or texts.pop("Prompt", "")
        negative = negative or texts.pop("Negative prompt", "") or texts.pop("Negative Prompt", "")
    values = {"prompt": prompt, **({"negative_prompt": negative} if negative else {}), **pairs}
    if "Model" not in pairs and (model := _civitai_model(pairs.get("Civitai resources", ""))):
        values["Model"] = model
    return values | {name: value for name, value in extra.items() if name not in values}


def _find_settings(text: str, before: str) -> tuple[int, int, dict[str, str]] | None:
    """The last settings whose first name follows the pattern `before`: start, end, and the settings by name."""
    found, position = None, 0
    for start in re.finditer(rf"{before}(?={NAME}:)", text, re.MULTILINE):
        if start.start() >= position and _is_setting(text, start.end()):
            pairs, position = _settings(text, start.end())
            if _is_request(pairs):
                found = start.start(), position, pairs
    return found


def _is_request(pairs: Mapping[str, str]) -> bool:
    """Whether the settings are those of an image rather than a prompt with colons."""
    fitting = {key for name, value in pairs.items() if (key := _key(name)) in CORE and re.fullmatch(CORE[key], value, re.IGNORECASE)}
    return len(pairs) >= 3 and len(fitting) >= 2


def _is_setting(text: str, position: int) -> bool:
    """Whether a known setting with a fitting value starts here."""
    name = _PAIR.match(text, position)
    if name is None or not ((key := _key(name[1])) in STARTS or key.startswith(START_PREFIXES)):
        return False
    return re.compile(rf"({CORE.get(key, '.+')})\s*(,|\n|$|\.\s*$)", re.IGNORECASE).match(text, name.end()) is not None


def _settings(text: str, position: int) -> tuple[dict[str, str], int]:
    """The settings from a position on, and where they end: at a line that begins otherwise. The first of equal names counts."""
    pairs: dict[str, str] = {}
    lines = 1
    while name := _PAIR.match(text, position):
        value, position = _value(text, name.end())
        if pairs.setdefault(name[1].strip(), value) != value:
            pairs[f"{name[1].strip()} (repeated)"] = value
        if text.startswith("\n", position):
            one_each = len(pairs) == lines and _PAIR.match(text, position + 1)
            if not one_each and not _is_setting(text, position + 1):
                break
            position, lines = position + 1, lines + 1
    return pairs, position


def _value(text: str, start: int) -> tuple[str, int]:
    """The value that starts here, and where it and its comma end."""
    if (quoted := _QUOTED.match(text, start)) and (comma := _COMMA.match(text, quoted.end())):
        try:
            return str(json.loads(quoted[0], strict=False)), comma.end()  # not strict: with line breaks
        except ValueError:
            return quoted[0], comma.end()
    if text.startswith(("{", "["), start):
        try:
            _, length = json.JSONDecoder().raw_decode(text[start : start + MAX_JSON])
        except (ValueError, RecursionError):
            length = 0
        if length and (comma := _COMMA.match(text, start + length)):
            return text[start : start + length], comma.end()
    found = _VALUE_END.search(text, start)
    if found is None:
        return text[start:].strip(), len(text)
    return text[start : found.start()].strip(), found.start() if found[0] == "\n" else found.end()


def _prompts(text: str, *, draw_things: bool) -> tuple[str, str]:
    """The prompt and the negative prompt in the text before the settings."""
    text = _PROMPT_LABEL.sub("", text).strip()
    negative = _NEGATIVE_LINE.search(text) or _NEGATIVE_INLINE.search(text)
    if negative:
        return text[: negative.start()].strip(), text[negative.end() :].strip()
    prompt, separator, rest = f"\n{text}".rpartition("\n-")
    return (prompt.strip(), rest.strip()) if draw_things and separator else (text, "")


def _extra_texts(text: str, settings: Mapping[str, str]) -> dict[str, str]:
    """The lines after the settings, by the names that they begin with; lines without a name continue the value before."""
    values: dict[str, str] = {}
    name = "text after the settings"
    for line in text.strip("\n ,").split("\n"):
        if pair := _PAIR.match(line):
            name = pair[1].strip()
            name = f"{name} (after the settings)" if name in settings else name
            line = line[pair.end() :]
        values[name] = f"{values[name]}\n{line}" if name in values else line
    return {name: value for name, value in values.items() if value.strip()}


def _civitai_model(resources: str) -> str | None:
    """The checkpoint among the resources that Civitai lists."""
    try:
        entries: Any = json.loads(resources)
    except (ValueError, RecursionError):
        return None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("type") == "checkpoint" and isinstance(entry.get("modelName"), str):
            return " ".join(str(entry[name]) for name in ("modelName", "modelVersionName") if entry.get(name))
    return None


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
