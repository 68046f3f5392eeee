"""Read the metadata that other programs write into images, as fields of a request and a list of unused values.

    any text               the settings of AUTOMATIC1111's web UI and similar programs (see `metadata.infotext`), Draw Things' among them
    any text               JSON with the names that diffusers' pipelines, SwarmUI, Fooocus, Draw Things or Easy Diffusion use
    prompt, workflow       ComfyUI's graphs
    invokeai_metadata,     InvokeAI's JSON, of newer and older versions, and its first command line
    sd-metadata, Dream
    Comment                NovelAI's JSON
    several texts          Easy Diffusion's, each with one setting

Files are not trusted: every value is checked, and an invalid one is listed instead of used.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata.comfyui import comfy_values, node_types
from daguerre.pipelines.metadata.infotext import parse_infotext
from daguerre.pipelines.metadata.invokeai import invokeai_2, invokeai_command, invokeai_json, joined_prompt, with_counted_clip_skip
from daguerre.pipelines.metadata.novelai import novelai_json
from daguerre.pipelines.request import MAX_SEED, Request, with_fields

MAX_TEXT = 1 << 22  # characters of a text that are read
MAX_SIDE = 16_384  # pixels of a requested side
MAX_VALUE_SHOWN = 80  # characters of an unused value
MAX_NAMES_SHOWN = 10  # texts or types of nodes that are not understood

# Fields of `Request` by the names that programs give them, reduced to letters and digits.
NAMES: Mapping[str, str] = {
    **dict.fromkeys(("prompt", "positiveprompt"), "prompt"),
    **dict.fromkeys(("negative", "negativeprompt", "uc"), "negative_prompt"),
    **dict.fromkeys(("steps", "numinferencesteps", "ddimsteps"), "steps"),
    **dict.fromkeys(("sampler", "samplername", "comfyuisampler", "autowebuisampler"), "sampler"),
    **dict.fromkeys(("scheduletype", "noiseschedule", "schedule"), "spacing"),
    **dict.fromkeys(("cfgscale", "guidancescale", "scale", "cfg"), "guidance_scale"),
    **dict.fromkeys(("seed", "noiseseed"), "seed"),
    **dict.fromkeys(("size", "resolution"), "size"),
    **dict.fromkeys(("model", "modelname", "modelid", "modelweights", "basemodel", "basemodelname", "sdmodelcheckpoint"), "model"),
    **dict.fromkeys(("stablediffusionmodel", "usestablediffusionmodel"), "model"),
    **dict.fromkeys(("scheduler", "comfyuischeduler"), "scheduler"),
    **{name: name for name in ("width", "height", "eta")},
    "clipskip": "clip_skip",
    **dict.fromkeys(("cfgrescale", "cfgrescalemultiplier"), "guidance_rescale"),
    "imgwidth": "width",
    "imgheight": "height",
}
# Samplers by names that `parse_sampler_name` does not know or that mean something else there.
SAMPLER_NAMES: Mapping[str, str] = {
    "DPMSolverMultistep": "dpmpp_2m",
    "DPMSolverSinglestep": "dpmpp_2s",
    "DPMSolverSDE": "dpmpp_sde",
    "DEISMultistep": "deis",
    "UniPCMultistep": "unipc",
    "ddim_v3": "ddim",  # NovelAI
    "k_dpmpp_2": "dpmpp_2m",  # InvokeAI 2
    "k_dpmpp_2_a": "dpmpp_2s_a",
    "uni_pc": "unipc_bh1",  # ComfyUI
}
IGNORED_FIELDS = {"version", "appversion", "metadataversion", "generationmode", "software"}  # not about the image


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
            text = f"{value:.10g}" if isinstance(value, float) else str(value)
            flag = f"--{name.replace('_', '-')}"
            options += [flag] if value is True else [f"{flag}={text}"] if text.startswith("-") else [flag, text]
        words = [*options, "--", prompt] if prompt.startswith("-") else [prompt, *options]
        return shlex.join(["daguerre", "txt2img", *words])


def read_foreign(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """The request in the metadata texts of an image; None if there is none in a known format."""
    texts = {name: text for name, text in texts.items() if len(text) <= MAX_TEXT}
    for software, values in _readings(texts):
        if foreign := _to_request(software, values):
            return foreign
    return None


def describe_unread(texts: Mapping[str, str]) -> str:
    """One sentence about the texts of an image in which `read_foreign` finds no request."""
    for name in ("prompt", "workflow"):
        graph = _object(texts.get(name, "")[:MAX_TEXT])
        if graph is not None and (kinds := node_types({name: graph})):
            return f"The image holds a graph of ComfyUI, but no prompt leads to a sampler in it. Its nodes: {_listed(kinds)}."
    if texts:
        return f"The image has no generation parameters that are understood. The names of its texts: {_listed(tuple(texts))}."
    return "The image has no generation parameters."


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(_short(name) for name in names[:MAX_NAMES_SHOWN]) + more


def _readings(texts: Mapping[str, str], *, nested: bool = False) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All readable settings, the most specific format first: the software, and its names with their values."""
    objects = {name: value for name, text in texts.items() if (value := _object(text)) is not None}
    for name in ("prompt", "workflow"):
        if name in objects:
            yield "ComfyUI", comfy_values({name: objects[name]})
    if "invokeai_metadata" in objects:
        yield "InvokeAI", invokeai_json(objects["invokeai_metadata"])
    if "sd-metadata" in objects:
        yield "InvokeAI", invokeai_2(objects["sd-metadata"])
    if "Dream" in texts:
        yield "InvokeAI", invokeai_command(texts["Dream"])
    if texts.get("Software") == "NovelAI" and "Comment" in objects:
        yield "NovelAI", novelai_json({"prompt": texts.get("Description", ""), **objects["Comment"]})
    for name in sorted(texts, key=lambda name: name != "parameters"):
        if (values := objects.get(name)) is None:
            if (settings := parse_infotext(texts[name])) is not None:
                draw_things = "Seed Mode" in settings
                yield "Draw Things" if draw_things else "AUTOMATIC1111's web UI or a similar program", settings
            continue
        inner = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items() if key != name}
        if not nested and (isinstance(values.get("Comment"), str) or isinstance(values.get("prompt", values.get("workflow")), dict)):
            yield from _readings(inner, nested=True)  # the texts of a PNG in one
        yield _json_values(values)
    yield "Easy Diffusion or a similar program", texts


def _json_values(values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The software of a JSON object and its settings."""
    if isinstance(inner := values.get("sui_image_params"), dict):
        if type(last := inner.get("clipstopatlayer")) is int and last < 0:  # -1 is the last layer
            inner = {**inner, "clip_skip": -last}
            del inner["clipstopatlayer"]
        return "SwarmUI", {**inner, **{name: value for name, value in values.items() if name != "sui_image_params"}}
    if {"c", "uc"} <= values.keys():
        names = {"c": "prompt", "uc": "negative_prompt"}
        return "Draw Things", {names.get(name, name): value for name, value in values.items()}
    if "num_inference_steps" in values:
        values = with_counted_clip_skip(values)
    software = str(values.get("software") or values.get("metadata_scheme") or "")
    return software[:40].title() if software.islower() else software[:40] or "a program that writes JSON", values


def _to_request(software: str, values: Mapping[str, Any]) -> ForeignMetadata | None:
    """Sort the values into those of a request, the model's name, and the rest."""
    known: dict[str, Any] = {}
    unused: dict[str, str] = {}
    for name, value in values.items():
        field = NAMES.get(_normalize(name))
        if field not in ("prompt", "negative_prompt", "model") and value in (None, "None", "False", ""):  # absent
            continue
        if field in known or field is None:
            unused[name] = _short(value)
        else:
            known[field] = value
    if "prompt" not in known or not {"steps", "seed", "guidance_scale", "sampler", "scheduler"} & known.keys():
        return None
    # A program with one name means the sampler by it; with two, the scheduler is the spacing.
    if "scheduler" in known:
        known["spacing" if "sampler" in known else "sampler"] = known.pop("scheduler")
    known |= _cfg_plus_plus(known)
    if str(known.get("spacing")).lower() == "automatic":
        known["spacing"] = _automatic_spacing(str(known.get("sampler")))
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
    if field == "cfg_plus_plus":
        return value
    if isinstance(value, bool):
        raise TypeError(value)
    if field == "prompt":
        return joined_prompt(value)
    if field in ("steps", "seed", "width", "height", "clip_skip"):
        number = int(value)
        if isinstance(value, float) and number != value:
            raise ValueError(value)
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

        return None if value is None else parse_spacing_name(str(value))
    return str(value)


def _cfg_plus_plus(known: Mapping[str, Any]) -> dict[str, Any]:
    """The changes for Euler and DDIM with CFG++, if the guidance scale is one of CFG++; other samplers stay unknown."""
    names = {"euler_cfg_pp": ("euler", 1), "DDIM CFG++": ("ddim", 12.5)}  # the web UI's guidance of 12.5 stands for 1
    sampler, unit = names.get(str(known.get("sampler")), (None, 1))
    try:
        scale = float(known["guidance_scale"]) / unit
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}
    return {"sampler": sampler, "cfg_plus_plus": True, "guidance_scale": scale} if sampler and 0 <= scale <= 1 else {}


def _automatic_spacing(sampler: str) -> str | None:
    """The spacing that AUTOMATIC1111's web UI chooses for a sampler; None for those with a spacing of their own."""
    from daguerre.diffusion.sampler_names import normalize_name

    name = normalize_name(sampler)
    if name in ("dpmpp2msde", "dpmpp2msdeheun", "dpmpp3msde"):
        return "exponential"
    if name in ("dpmpp2m", "dpmppsde", "dpmpp2sa", "dpm2", "dpm2a"):
        return "karras"
    return "linspace" if name in ("euler", "eulera", "lms", "heun") else None


def _sampler(name: str) -> str:
    """A sampler's name in daguerre, with the spacing if the name holds one; the names of diffusers end in "Scheduler"."""
    from daguerre.diffusion import parse_sampler_name

    plain = re.sub(r"_k$", "_karras", re.sub(r"_gpu$", "", name)).removesuffix("Scheduler").removesuffix("Discrete")
    plain = SAMPLER_NAMES.get(plain, plain)
    choice = parse_sampler_name(plain)
    return choice.sampler.name if choice.spacing is None else plain


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object; None for any other text, however long or deeply nested."""
    text = text.strip("\ufeff\0 \t\r\n")
    if not text.startswith("{"):
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
