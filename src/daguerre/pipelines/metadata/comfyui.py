"""Read ComfyUI's graphs: the settings of the sampler that generated the saved image, its prompts, and the model files.

A graph is a dictionary of nodes, `{"3": {"class_type": "KSampler", "inputs": {"steps": 20, "positive": ["6", 0], …}}, …}`, where an input
is a value or a link `[node, output]`. A workflow is the editor's form of it: nodes with lists of widgets, and a table of links.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

ComfyNode = Mapping[str, Any]  # class_type and inputs
ComfyGraph = Mapping[str, ComfyNode]

# The widgets of the nodes that are read, in the order in which the editor stores their values.
WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step"),
    "KSampler (Efficient)": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "SamplerCustom": ("", "noise_seed", "", "cfg"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("", "", "", "", "", "", "text_g", "text_l"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "VAELoader": ("vae_name",),
    "LoadImage": ("image",),
    "ControlNetLoader": ("control_net_name",),
    "StringConcatenate": ("string_a", "string_b", "delimiter"),
    "SetNode": ("variable",),
    "GetNode": ("variable",),
}
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
MAX_NODES, MAX_SUBGRAPH_DEPTH = 10_000, 8  # of a workflow with its subgraphs expanded
MUTED, BYPASSED_MODE = 2, 4  # values of "mode" in a workflow
BYPASSED = "bypassed"  # the type of a bypassed node here


def comfy_values(graphs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the graphs of an image, which are stored under "prompt" and "workflow"; empty without a sampler and a prompt."""
    graph = _graph(graphs["prompt"]) if "prompt" in graphs else _from_workflow(graphs["workflow"])
    passes = _passes(graph)
    if not passes:
        return {}
    sampler = passes[-1]  # the one that starts from noise
    config = [sampler, *_upstream(graph, sampler, without=NOT_CONFIG)]
    texts = _Texts(graph)
    prompt = texts.of_side(config, "positive")
    if prompt is None:
        return {}
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": texts.of_side(config, "negative") or ""}
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


def _graph(value: Any) -> ComfyGraph:
    """The nodes that have a type and inputs."""
    nodes = value.items() if isinstance(value, dict) else ()
    return {
        str(name): node
        for name, node in nodes
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
    }


def _from_workflow(workflow: Any) -> ComfyGraph:
    """The graph of an editor's workflow, its subgraphs expanded, without muted nodes; bypassed ones keep their links alone."""
    definitions = workflow.get("definitions") if isinstance(workflow, dict) else None
    subgraphs = {str(each.get("id")): each for each in _list(definitions, "subgraphs") if isinstance(each, dict)}
    graph = _Expansion(subgraphs).of(workflow)
    variables = {name: str(node["inputs"].pop("variable")) for name, node in graph.items() if "variable" in node["inputs"]}
    stored = {variable: name for name, variable in variables.items() if graph[name]["class_type"] == "SetNode"}
    for name, variable in variables.items():
        if graph[name]["class_type"] == "GetNode" and variable in stored:
            graph[name]["inputs"]["value"] = [stored[variable], 0]
    return graph


class _Expansion:
    """Puts the nodes of subgraphs in the position of the nodes that stand for them.

    A node in a subgraph is named after the node that stands for the subgraph, "7:3". Inside, links from node −10 are the subgraph's inputs,
    and links to node −20 its outputs; `links` maps both to what they stand for.
    """

    def __init__(self, subgraphs: Mapping[str, Any]) -> None:
        self.subgraphs = subgraphs
        self.graph: dict[str, ComfyNode] = {}
        self.widgets: dict[str, dict[str, Any]] = {}  # values of a node's widgets, which links replace
        self.links: dict[tuple[str, object], Any] = {}
        self.count = 0  # of nodes read, in subgraphs once for each that stands for them

    def of(self, workflow: Any) -> dict[str, ComfyNode]:
        """The nodes of the workflow, each input a value or a link to another of them."""
        self._add(workflow, "", 0)
        for name, node in self.graph.items():
            linked = {key: found for key, link in node["inputs"].items() if (found := self._source(link)) is not None}
            self.graph[name] = {**node, "inputs": {**self.widgets[name], **linked}}
        return self.graph

    def _add(self, holder: Any, prefix: str, depth: int) -> None:
        sources: dict[str, list[Any]] = {}
        output = str((_get(holder, "outputNode") or {"id": -20}).get("id"))
        for each in _list(holder, "links"):
            if (link := _link_ends(each)) is None:
                continue
            sources[link[0]] = [f"{prefix}{link[1]}", link[2]]
            if prefix and link[3] == output:
                self.links[prefix[:-1], link[4]] = sources[link[0]]
        for node in _list(holder, "nodes"):
            if not isinstance(node, dict) or not isinstance(node.get("type"), str) or node.get("mode") == MUTED:
                continue
            self.count += 1
            if self.count > MAX_NODES:
                return
            name, entries = f"{prefix}{node.get('id')}", [entry for entry in _list(node, "inputs") if isinstance(entry, dict)]
            linked = {str(entry.get("name")): sources[str(entry["link"])] for entry in entries if str(entry.get("link")) in sources}
            widgets = {} if node.get("mode") == BYPASSED_MODE else _widgets(node, entries)
            subgraph = self.subgraphs.get(node["type"])
            if subgraph is not None and node.get("mode") != BYPASSED_MODE and depth < MAX_SUBGRAPH_DEPTH:
                inner = str((_get(subgraph, "inputNode") or {"id": -10}).get("id"))
                slots = [str(_get(each, "name")) for each in _list(subgraph, "inputs")] or [str(entry.get("name")) for entry in entries]
                self.links |= {(f"{name}:{inner}", slot): linked.get(key, widgets.get(key)) for slot, key in enumerate(slots)}
                self._add(subgraph, f"{name}:", depth + 1)
                continue
            self.widgets[name] = widgets
            kind = node["type"] if node.get("mode") != BYPASSED_MODE else BYPASSED
            self.graph[name] = {"class_type": kind, "inputs": linked}

    def _source(self, link: Any) -> Any:
        """A link to a node of the graph, or a value; None for an input of a subgraph that has neither."""
        for _ in range(2 * MAX_SUBGRAPH_DEPTH + 2):
            if not _is_link(link) or (link[0], link[1]) not in self.links:
                return link
            link = self.links[link[0], link[1]]
        return None


def _link_ends(link: Any) -> tuple[str, str, int, str, int | None] | None:
    """The id, the origin's node and slot, and the target's node and slot of a link, which is a list or, since version 1, an object."""
    if isinstance(link, dict):
        link = [link.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    if not isinstance(link, list) or len(link) < 3 or not isinstance(link[2], int):
        return None
    target, slot = (link[3], link[4]) if len(link) >= 5 else (None, None)
    return str(link[0]), str(link[1]), link[2], str(target), slot if isinstance(slot, int) else None


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else None


def _widgets(node: Mapping[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of a node's widgets by name."""
    if isinstance(values := node.get("widgets_values"), dict):
        return {str(name): value for name, value in values.items() if not isinstance(value, list)}
    plain = [None if isinstance(value, list) else value for value in _list(node, "widgets_values")]
    names = list(WIDGETS.get(node["type"], ()))
    if not names:  # newer editors store the names, but not that a seed is followed by a widget of its own
        for entry in entries:
            if isinstance(entry.get("widget"), dict):
                names += [str(entry["widget"].get("name"))] + [""] * (entry["widget"].get("name") in ("seed", "noise_seed"))
    if not names:
        names = [f"text_{number}" if isinstance(value, str) else "value" for number, value in enumerate(plain, 1)]
        names = ["value"] if node["type"].startswith("Primitive") else names
    # Not strict: versions of the editor store more or fewer values.
    return {name: value for name, value in zip(names, plain, strict=False) if name and value is not None}


def _list(holder: Any, name: str) -> list[Any]:
    return value if isinstance(holder, dict) and isinstance(value := holder.get(name), list) else []


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
    if node["class_type"] == BYPASSED:
        return False
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
