"""Read ComfyUI's graphs: the settings of the sampler that generated the saved image, its prompts, and the model files.

A graph is a dictionary of nodes, `{"3": {"class_type": "KSampler", "inputs": {"steps": 20, "positive": ["6", 0], …}}, …}`, where an input
is a value or a link `[node, output]`. The editor's form of it, a workflow, is turned into a graph first (see `comfyui_workflow`).
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from daguerre.pipelines.metadata.comfyui_workflow import ComfyGraph, ComfyNode, graph_of_workflow

SETTINGS = ("steps", "cfg", "sampler_name", "scheduler", "seed", "noise_seed", "denoise")
SIDES = ("width", "height")
MODELS = ("ckpt_name", "unet_name")
LISTED = ("lora_name", "vae_name", "control_net_name", "image", "eta", "s_noise", "start_at_step", "end_at_step", "guidance")
LATENTS = {"latent_image", "latent", "samples"}
NOT_CONFIG = {"positive", "negative", "conditioning", "model", "image", *LATENTS}  # inputs of a sampler that do not lead to its settings
NOT_LATENT = {"positive", "negative", "conditioning", "model", "guider", "sampler", "sigmas", "noise", "clip", "vae"}
# Inputs that lead from a node to neither its texts nor its conditions.
NOT_TEXT = {"model", "clip", "vae", "control_net", "image", "mask", "pixels", "clip_vision_output", *LATENTS}
# Names of text inputs, the decisive first; a node with several texts joins them.
FINAL_TEXT = ("populated_text", "text_0")
TEXT_NAME = re.compile(r"(text|string|str|prompt|value|wildcard_text|clip_[lg]|t5xxl|input|any|[a-d])([_ ]?[a-z0-9]{1,2})?")
NUMBER_NAMES = ("value", "int", "float", "number", "seed", "Number", "Value")
MAX_LINKED_VALUES = 100  # nodes in a chain of values
MAX_JOINED_TEXT = 1 << 20  # characters of a joined text
MAX_PASSES = 20
EMBEDDING = re.compile(r"\bembedding:(?:[^\s,():]*[/\\])?([^\s,():/\\]+?)(?:\.(?:safetensors|pt|bin))?(?=[\s,():]|$)")


def comfy_values(graphs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the graphs of an image, which are stored under "prompt" and "workflow"; empty without a sampler and a prompt."""
    graph = _graph_of(graphs)
    passes = _passes(graph)
    if not passes:
        return {}
    sampler = passes[-1]  # the one that starts from noise
    config = [sampler, *_upstream(graph, sampler, without=NOT_CONFIG)]
    texts = _Texts(graph)
    prompt = texts.of_side(config, "positive")
    if prompt is None:
        return {}
    sides = {"prompt": prompt, "negative_prompt": texts.of_side(config, "negative") or ""}
    values: dict[str, Any] = {name: EMBEDDING.sub(r"\1", text) for name, text in sides.items()}  # here the name alone is the word
    if words := dict.fromkeys(word for text in sides.values() for word in EMBEDDING.findall(text)):
        values["embeddings"] = ", ".join(words)
    values |= _values(graph, config, SETTINGS)
    values |= _values(graph, _upstream(graph, sampler, only=LATENTS), SIDES)
    for node in config:  # such as KarrasScheduler and SamplerEulerAncestral
        if found := re.fullmatch(r"Sampler(?!Custom)(\w+)|(?!Basic)(\w+)Scheduler", node["class_type"]):
            values.setdefault("sampler_name" if found[1] else "scheduler", found[1] or found[2])
    upstream = [sampler, *_upstream(graph, sampler)]
    for node in (*_upstream(graph, sampler, only={"model", "guider"}), *upstream):
        plain = {name: value for name, value in node["inputs"].items() if not isinstance(value, list | dict)}
        model = next((plain[name] for name in MODELS if name in plain), None)
        if model is not None and values.setdefault("model", model) != model:
            values[f"{node['class_type']} model"] = model
        if isinstance(skip := plain.get("stop_at_clip_layer"), int):
            values["clip_skip"] = -skip
        values |= {f"{node['class_type']} {name}": plain[name] for name in LISTED if name in plain}
    for number, node in enumerate(reversed(passes[:-1]), 2):
        plain = _values(graph, [node], ("denoise", "upscale_by", "start_at_step", "end_at_step", *SETTINGS))
        values[f"pass {number}"] = f"{node['class_type']} " + ", ".join(f"{name} {value}" for name, value in plain.items())
    return {name: value for name, value in values.items() if (name, value) != ("denoise", 1)}


def node_types(graphs: Mapping[str, Any]) -> tuple[str, ...]:
    """The different types of the nodes that run, in order."""
    return tuple(dict.fromkeys(node["class_type"] for node in _graph_of(graphs).values()))


def _graph_of(graphs: Mapping[str, Any]) -> ComfyGraph:
    return _graph(graphs["prompt"]) if "prompt" in graphs else graph_of_workflow(graphs["workflow"])


def _graph(value: Any) -> ComfyGraph:
    """The nodes that have a type and inputs."""
    nodes = value.items() if isinstance(value, dict) else ()
    return {
        str(name): node
        for name, node in nodes
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
    }


def _passes(graph: ComfyGraph) -> list[ComfyNode]:
    """The samplers of the saved image, the last first; the last one of the list starts from noise."""
    linked = {name for node in graph.values() for name in _links(node)}
    sinks = [node for name, node in graph.items() if name not in linked]
    sinks.sort(key=lambda node: (not re.search("save", node["class_type"], re.IGNORECASE), "Preview" not in node["class_type"]))
    visited = set[str]()
    nodes = (node for sink in (*sinks, *graph.values()) for node in (sink, *_upstream(graph, sink, visited=visited)))
    passes = [found] if (found := next(filter(_is_sampler, nodes), None)) else []
    while passes and len(passes) < MAX_PASSES:
        found = next(filter(_is_sampler, _upstream(graph, passes[-1], without=NOT_LATENT)), None)
        if found is None or any(found is node for node in passes):
            break
        passes.append(found)
    return passes


def _is_sampler(node: ComfyNode) -> bool:
    inputs, links = node["inputs"], {name for name, value in node["inputs"].items() if _is_link(value)}
    named = "Sampler" in node["class_type"] and ("positive" in links or bool({"steps", "sigmas", "seed", "noise_seed"} & inputs.keys()))
    return "guider" in links or {"model", "positive"} <= links or (named and bool(links))


def _values(graph: ComfyGraph, nodes: Iterable[ComfyNode], names: tuple[str, ...]) -> dict[str, Any]:
    """The first value of each name in the nodes; a linked value that cannot be computed is listed by its name and node."""
    values: dict[str, Any] = {}
    for node in nodes:
        for name in names:
            if name in node["inputs"] and name not in values:
                found = _plain_value(graph, node["inputs"][name], name, 0)
                if found is not None:
                    values[name] = found
                elif _is_link(link := node["inputs"][name]) and str(link[0]) in graph:
                    values[f"{node['class_type']} {name}"] = f"computed by {graph[str(link[0])]['class_type']}"
    return values


def _plain_value(graph: ComfyGraph, value: Any, name: str, depth: int) -> Any:
    """A number or a name that an input holds or that comes from a linked node; None if it is computed there."""
    if not isinstance(value, list | dict):
        return value
    if not _is_link(value) or depth > MAX_LINKED_VALUES or (node := graph.get(str(value[0]))) is None:
        return None
    inputs = node["inputs"]
    if name in inputs:
        return _plain_value(graph, inputs[name], name, depth + 1)
    candidates = [inputs[each] for each in NUMBER_NAMES if each in inputs] or list(inputs.values())
    return _plain_value(graph, candidates[0], name, depth + 1) if len(candidates) == 1 else None


class _Texts:
    """The texts of the conditions and texts in a graph; each node is read once."""

    def __init__(self, graph: ComfyGraph) -> None:
        self.graph = graph
        self.found: dict[tuple[object, ...], str | None] = {}

    def of_side(self, nodes: list[ComfyNode], side: str) -> str | None:
        """The text of one side of the sampler. A guider without guidance has only one, "conditioning"."""
        names = (side, "conditioning") if side == "positive" else (side,)
        link = next((node["inputs"][name] for name in names for node in nodes if name in node["inputs"]), None)
        try:
            return self.condition(link, side)
        except RecursionError:
            return None

    def condition(self, value: Any, side: str) -> str | None:
        """The text of a condition, through any nodes between it and the sampler; None if no text is found."""
        return self._once(self._condition, value, side)

    def text(self, value: Any, side: str = "") -> str | None:
        """A text that an input holds, or that linked nodes hold, choose or join; None if there is none."""
        return self._once(self._text, value, side)

    def _once(self, read: Callable[[ComfyNode, int, str], str | None], value: Any, side: str) -> str | None:
        if isinstance(value, str | int | float):
            return str(value)
        if not _is_link(value) or str(value[0]) not in self.graph:
            return None
        key = read.__name__, str(value[0]), value[1], side
        if key not in self.found:
            self.found[key] = None  # a circle of links has no text
            text = read(self.graph[str(value[0])], value[1], side)
            self.found[key] = text if text is None or len(text) <= MAX_JOINED_TEXT else None
        return self.found[key]

    def _condition(self, node: ComfyNode, output: int, side: str) -> str | None:
        kind, inputs = node["class_type"], node["inputs"]
        if "ZeroOut" in kind:
            return ""
        if {"positive", "negative"} <= inputs.keys():  # the first output is the positive condition, except of loaders with texts
            side = side if isinstance(inputs[side], str) else {0: "positive", 1: "negative"}.get(output, side)
            return self.condition(inputs[side], side)
        encodes = "clip" in inputs or not any(name.startswith("conditioning") for name in inputs)
        if encodes and (text := self._text(node, output, side)) is not None:
            return text
        parts = [self.condition(each, side) for name, each in inputs.items() if _is_link(each) and name not in NOT_TEXT]
        joint = " BREAK " if "Concat" in kind else " AND " if side == "positive" else ", "
        return _join(parts, joint)

    def _text(self, node: ComfyNode, output: int, side: str) -> str | None:
        inputs = node["inputs"]
        chosen = next((inputs[name] for name in FINAL_TEXT if isinstance(inputs.get(name), str)), None)
        if chosen is None and type(inputs.get("select")) is int:
            chosen = inputs.get(f"input{inputs['select']}")
        if chosen is not None:
            return self.text(chosen)
        names = [name for name in inputs if TEXT_NAME.fullmatch(name)]
        names = names or [name for name, each in inputs.items() if _is_link(each) and name not in NOT_TEXT]
        parts = [self.text(inputs[name]) for name in names]
        delimiter = next((inputs[name] for name in ("delimiter", "separator") if isinstance(inputs.get(name), str)), None)
        if delimiter is None:  # the texts of two encoders are often equal
            return _join(parts, ", ")
        return delimiter.replace("\\n", "\n").join(part for part in parts if part) if any(part is not None for part in parts) else None


def _join(parts: list[str | None], joint: str) -> str | None:
    """The different texts; None if there is none, not even an empty one."""
    known = [part for part in parts if part is not None]
    return joint.join(dict.fromkeys(part for part in known if part)) if known else None


def _upstream(
    graph: ComfyGraph,
    node: ComfyNode,
    *,
    without: Collection[str] = (),
    only: Collection[str] | None = None,
    visited: set[str] | None = None,
) -> Iterator[ComfyNode]:
    """Every node that this one depends on, nearest first, each once.

    without, only: inputs of this node that are not followed, or the only ones. visited: nodes that are left out; extended.
    """
    inputs = node["inputs"].items()
    queue = [str(value[0]) for name, value in inputs if _is_link(value) and name not in without and (only is None or name in only)]
    visited = set() if visited is None else visited
    for name in queue:
        if name not in visited and name in graph:
            visited.add(name)
            yield graph[name]
            queue += _links(graph[name])


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int)


def _links(node: ComfyNode) -> list[str]:
    return [str(value[0]) for value in node["inputs"].values() if _is_link(value)]
