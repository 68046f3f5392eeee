"""What other programs write into their pictures, read as a request: which fields it asks for, and what has no place here.

    parameters             AUTOMATIC1111's web UI and its kin: prompt, "Negative prompt: …", "Steps: 20, Sampler: …"; or one JSON object
    prompt, workflow       ComfyUI's graphs
    invokeai_metadata,     InvokeAI's JSON, of later and of earlier versions
    sd-metadata
    Comment                NovelAI's JSON
    any text               a JSON object with the names that diffusers' pipelines, SwarmUI, Fooocus or Draw Things use

A file is a stranger's: every value is checked, and one that no request could hold is named instead of used.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata.comfyui import comfy_values
from daguerre.pipelines.request import MAX_SEED, Request, with_fields

MAX_TEXT = 1 << 22  # characters of a text that are looked at
MAX_SIDE = 16_384  # pixels that a size may ask for
MAX_VALUE_SHOWN = 80  # characters of a value that is not used
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"

# Our fields under the names that programs have for them, letters and digits alone.
NAMES: Mapping[str, str] = {
    **dict.fromkeys(("prompt", "positiveprompt"), "prompt"),
    **dict.fromkeys(("negative", "negativeprompt", "uc"), "negative_prompt"),
    **dict.fromkeys(("steps", "numinferencesteps"), "steps"),
    **dict.fromkeys(("sampler", "samplername"), "sampler"),
    **dict.fromkeys(("scheduletype", "noiseschedule", "schedule"), "spacing"),
    **dict.fromkeys(("cfgscale", "guidancescale", "scale", "cfg"), "guidance_scale"),
    **dict.fromkeys(("seed", "noiseseed"), "seed"),
    **dict.fromkeys(("size", "resolution"), "size"),
    **dict.fromkeys(("model", "modelname", "modelid", "modelweights", "basemodel", "sdmodelcheckpoint"), "model"),
    **{name: name for name in ("width", "height", "eta", "scheduler")},
}
IGNORED_FIELDS = {"version", "appversion", "metadataversion", "generationmode"}  # says nothing about the picture


@dataclass(frozen=True)
class ForeignMetadata:
    """A picture that another program made.

    tool: its name. request: fields of `Request`. model: as that program names it. unused: what it says that has no place in a request.
    """

    software: str
    request: Mapping[str, Any]
    model: str | None
    unused: Mapping[str, str]

    def command(self) -> str:
        """The command line that asks for the same here, also where a text begins as options do."""
        values = dict(self.request)
        prompt = str(values.pop("prompt", ""))
        if {"width", "height"} <= values.keys():
            values = {"size": f"{values.pop('width')}x{values.pop('height')}", **values}
        options: list[str] = []
        for name, value in values.items():
            text = f"{value:g}" if isinstance(value, float) else str(value)
            options += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
        words = [*options, "--", prompt] if prompt.startswith("-") else [prompt, *options]
        return shlex.join(["daguerre", "txt2img", *words])


def read_foreign(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """What the texts of a picture ask for, None where they ask for nothing that is known."""
    texts = {name: text for name, text in texts.items() if len(text) <= MAX_TEXT}
    for tool, values in _readings(texts):
        if foreign := _foreign(tool, values):
            return foreign
    return None


def _readings(texts: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Whatever can be read, the surest first: the tool, and its names with their values."""
    graphs = {name: value for name in ("prompt", "workflow") if (value := _object(texts.get(name, ""))) is not None}
    if graphs:
        yield "ComfyUI", comfy_values(graphs)
    if (values := _object(texts.get("invokeai_metadata", ""))) is not None:
        yield "InvokeAI", values
    if (values := _object(texts.get("sd-metadata", ""))) is not None:
        image = values.pop("image", {})
        yield "InvokeAI", values | (image if isinstance(image, dict) else {})
    if texts.get("Software") == "NovelAI" and (values := _object(texts.get("Comment", ""))) is not None:
        yield "NovelAI", {"prompt": texts.get("Description", ""), **values}
    parameters = texts.get("parameters", "")
    if (values := parse_infotext(parameters)) is not None:
        yield "AUTOMATIC1111's web UI or one of its kin", values
    for text in (parameters, *texts.values()):
        if (values := _object(text)) is not None:
            inner = values.get("sui_image_params")
            yield ("SwarmUI", inner) if isinstance(inner, dict) else ("a program that writes JSON", values)


def parse_infotext(text: str) -> dict[str, str] | None:
    """The names and values of a `parameters` text; None where its last line does not hold three of them."""
    *lines, last = text.strip().split("\n")
    pairs = {name.strip(): _unquoted(value.strip()) for name, value in _PAIR.findall(last)}
    if len(pairs) < 3:
        return None
    negative = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    no = "\n".join(lines[negative:]).removeprefix(NEGATIVE).strip()
    return {"prompt": "\n".join(lines[:negative]).strip(), **({"negative_prompt": no} if no else {}), **pairs}


def _foreign(tool: str, values: Mapping[str, Any]) -> ForeignMetadata | None:
    """Sort the values: those of a request, the model's name, and all else."""
    ours: dict[str, Any] = {}
    unused: dict[str, str] = {}
    for name, value in values.items():
        field = NAMES.get(_folded(name))
        if field in ours or field is None:
            unused[name] = _short(value)
        else:
            ours[field] = value
    if "prompt" not in ours or not {"steps", "seed", "guidance_scale", "sampler", "scheduler"} & ours.keys():
        return None
    # Where a program names one thing, it is the sampler; where two, the second is the spacing.
    if "scheduler" in ours:
        ours["spacing" if "sampler" in ours else "sampler"] = ours.pop("scheduler")
    if found := re.fullmatch(r"\D*(\d{1,5})\D+(\d{1,5})\D*", str(ours.pop("size", ""))):
        ours |= {"width": found[1], "height": found[2]}
    model = ours.pop("model", None)
    model = model.get("name", model.get("model_name")) if isinstance(model, dict) else model
    request: dict[str, Any] = {}
    for field, value in ours.items():
        try:
            fits = _fitting(field, value)
            with_fields(Request(), {field: fits})
        except (DaguerreError, ValueError, TypeError, OverflowError):
            unused[field] = _short(value)
        else:
            request[field] = fits
    if ("width" in request) != ("height" in request):  # one side alone is no size
        unused |= {side: str(request.pop(side)) for side in ("width", "height") if side in request}
    if request.get("spacing") is None:
        request.pop("spacing", None)
    seen = {name: value for name, value in unused.items() if value and _folded(name) not in IGNORED_FIELDS}
    return ForeignMetadata(tool, request, None if model is None else str(model)[:200], seen) if "prompt" in request else None


def _fitting(field: str, value: Any) -> Any:
    """A value as our field takes it. Raises one of several errors where there is no such value."""
    if isinstance(value, bool):
        raise TypeError(value)
    if field == "prompt":
        return "".join(_prompt_parts(value))
    if field in ("steps", "seed", "width", "height"):
        number = int(value) if isinstance(value, int | str) else int(float(value))
        limit = {"steps": 10_000, "seed": MAX_SEED - 1}.get(field, MAX_SIDE)
        if number > limit:
            raise ValueError(number)
        return number
    if field in ("guidance_scale", "eta"):
        return float(value)
    if field == "sampler":
        return _sampler(str(value))
    if field == "spacing":
        from daguerre.diffusion import parse_spacing_name

        return None if str(value).lower() in ("automatic", "native", "simple") else parse_spacing_name(str(value))
    return str(value)


def _sampler(name: str) -> str:
    """Our name of a sampler, joined with a spacing where the name holds one; diffusers' names end in "Scheduler"."""
    from daguerre.diffusion import parse_sampler_name

    plain = re.sub(r"_k$", "_karras", re.sub(r"_(gpu|cfg_pp)$", "", name)).removesuffix("Scheduler").removesuffix("Discrete")
    known = {"DPMSolverMultistep": "dpmpp_2m", "DPMSolverSinglestep": "dpmpp_2s", "EulerAncestralDiscrete": "euler_a", "ddim_v3": "ddim"}
    choice = parse_sampler_name(known.get(plain, plain))
    return choice.sampler.name if choice.spacing is None else plain


def _prompt_parts(value: Any) -> Iterator[str]:
    """A prompt that may be a list of weighted parts, as early InvokeAI has it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("prompt"), str) for part in value):
        yield " AND ".join(part["prompt"] for part in value)
    else:
        raise TypeError(value)


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object; None of anything else, however deep or long it is."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _short(value: Any) -> str:
    """A value on one short line; "" of what is nothing."""
    if value in (None, "", False) or (isinstance(value, list | dict) and not value):
        return ""
    text = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).split())
    return text if len(text) <= MAX_VALUE_SHOWN else f"{text[:MAX_VALUE_SHOWN]}…"


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
