"""Read the metadata that other programs write into images, as fields of a request and a list of unused values.

    parameters             AUTOMATIC1111's web UI and similar programs: prompt, "Negative prompt: …", "Steps: 20, Sampler: …"; or JSON
    prompt, workflow       ComfyUI's graphs
    invokeai_metadata,     InvokeAI's JSON, of newer and older versions
    sd-metadata
    Comment                NovelAI's JSON
    any text               a JSON object with the names that diffusers' pipelines, SwarmUI, Fooocus or Draw Things use

Files are not trusted: every value is checked, and an invalid one is listed instead of used.
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

MAX_TEXT = 1 << 22  # characters of a text that are read
MAX_SIDE = 16_384  # pixels of a requested side
MAX_VALUE_SHOWN = 80  # characters of an unused value
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"

# Fields of `Request` by the names that programs give them, reduced to letters and digits.
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
    "clipskip": "clip_skip",
    "cfgrescale": "guidance_rescale",
}
IGNORED_FIELDS = {"version", "appversion", "metadataversion", "generationmode"}  # not about the image


@dataclass(frozen=True)
class ForeignMetadata:
    """The metadata of an image from another program.

    software: its name. request: fields of `Request`. model: as that program names it. unused: values that a request has no field for.
    """

    software: str
    request: Mapping[str, Any]
    model: str | None
    unused: Mapping[str, str]

    def command(self) -> str:
        """The command line for the same request; texts that look like options are quoted safely."""
        values = dict(self.request)
        prompt = str(values.pop("prompt", ""))
        if {"width", "height"} <= values.keys():
            values = {"size": f"{values.pop('width')}x{values.pop('height')}", **values}
        options: list[str] = []
        for name, value in values.items():
            text = f"{value:g}" if isinstance(value, float) else str(value)
            flag = f"--{name.replace('_', '-')}"
            options += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
        words = [*options, "--", prompt] if prompt.startswith("-") else [prompt, *options]
        return shlex.join(["daguerre", "txt2img", *words])


def read_foreign(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """The request in the metadata texts of an image; None if there is none in a known format."""
    texts = {name: text for name, text in texts.items() if len(text) <= MAX_TEXT}
    for software, values in _readings(texts):
        if foreign := _to_request(software, values):
            return foreign
    return None


def _readings(texts: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All readable settings, the most specific format first: the software, and its names with their values."""
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
        yield "AUTOMATIC1111's web UI or a similar program", values
    for text in (parameters, *texts.values()):
        if (values := _object(text)) is not None:
            inner = values.get("sui_image_params")
            yield ("SwarmUI", inner) if isinstance(inner, dict) else ("a program that writes JSON", values)


def parse_infotext(text: str) -> dict[str, str] | None:
    """The names and values of a `parameters` text; None if its last line has fewer than three."""
    *lines, last = text.strip().split("\n")
    pairs = {name.strip(): _unquoted(value.strip()) for name, value in _PAIR.findall(last)}
    if len(pairs) < 3:
        return None
    negative = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    no = "\n".join(lines[negative:]).removeprefix(NEGATIVE).strip()
    return {"prompt": "\n".join(lines[:negative]).strip(), **({"negative_prompt": no} if no else {}), **pairs}


def _to_request(software: str, values: Mapping[str, Any]) -> ForeignMetadata | None:
    """Sort the values into those of a request, the model's name, and the rest."""
    known: dict[str, Any] = {}
    unused: dict[str, str] = {}
    for name, value in values.items():
        field = NAMES.get(_normalize(name))
        if field in known or field is None:
            unused[name] = _short(value)
        else:
            known[field] = value
    if "prompt" not in known or not {"steps", "seed", "guidance_scale", "sampler", "scheduler"} & known.keys():
        return None
    # A program with one name means the sampler by it; with two, the scheduler is the spacing.
    if "scheduler" in known:
        known["spacing" if "sampler" in known else "sampler"] = known.pop("scheduler")
    if found := re.fullmatch(r"\D*(\d{1,5})\D+(\d{1,5})\D*", str(known.pop("size", ""))):
        known |= {"width": found[1], "height": found[2]}
    model = known.pop("model", None)
    model = model.get("name", model.get("model_name")) if isinstance(model, dict) else model
    request: dict[str, Any] = {}
    for field, value in known.items():
        try:
            converted = _convert(field, value)
            with_fields(Request(), {field: converted})
        except (DaguerreError, ValueError, TypeError, OverflowError):
            unused[field] = _short(value)
        else:
            request[field] = converted
    if ("width" in request) != ("height" in request):  # a size needs both sides
        unused |= {side: str(request.pop(side)) for side in ("width", "height") if side in request}
    if request.get("spacing") is None:
        request.pop("spacing", None)
    shown = {name: value for name, value in unused.items() if value and _normalize(name) not in IGNORED_FIELDS}
    return ForeignMetadata(software, request, None if model is None else str(model)[:200], shown) if "prompt" in request else None


def _convert(field: str, value: Any) -> Any:
    """A value in the type of the request's field. Raises one of several errors if it cannot be converted."""
    if isinstance(value, bool):
        raise TypeError(value)
    if field == "prompt":
        return "".join(_prompt_parts(value))
    if field in ("steps", "seed", "width", "height", "clip_skip"):
        number = int(value) if isinstance(value, int | str) else int(float(value))
        limit = {"steps": 10_000, "seed": MAX_SEED - 1}.get(field, MAX_SIDE)
        if number > limit:
            raise ValueError(number)
        return number
    if field in ("guidance_scale", "guidance_rescale", "eta"):
        return float(value)
    if field == "sampler":
        return _sampler(str(value))
    if field == "spacing":
        from daguerre.diffusion import parse_spacing_name

        return None if str(value).lower() in ("automatic", "native", "simple") else parse_spacing_name(str(value))
    return str(value)


def _sampler(name: str) -> str:
    """A sampler's name in daguerre, with the spacing if the name holds one; the names of diffusers end in "Scheduler"."""
    from daguerre.diffusion import parse_sampler_name

    plain = re.sub(r"_k$", "_karras", re.sub(r"_(gpu|cfg_pp)$", "", name)).removesuffix("Scheduler").removesuffix("Discrete")
    known = {"DPMSolverMultistep": "dpmpp_2m", "DPMSolverSinglestep": "dpmpp_2s", "EulerAncestralDiscrete": "euler_a", "ddim_v3": "ddim"}
    choice = parse_sampler_name(known.get(plain, plain))
    return choice.sampler.name if choice.spacing is None else plain


def _prompt_parts(value: Any) -> Iterator[str]:
    """A prompt, which may be a list of weighted parts in early versions of InvokeAI."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("prompt"), str) for part in value):
        yield " AND ".join(part["prompt"] for part in value)
    else:
        raise TypeError(value)


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object; None for any other text, however long or deeply nested."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _normalize(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _short(value: Any) -> str:
    """A value on one short line; "" for an empty one."""
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
