"""Turn a workflow of ComfyUI's editor into the graph that it runs (docs.comfy.org, workflow JSON, versions 0.4 and 1.0).

A workflow lists nodes, their widgets and links: `[id, origin, slot, target, slot, type]`, or an object with these as fields. A node whose
type is the id of a subgraph stands for the nodes in it; links from `INPUT_NODE` and to `OUTPUT_NODE` lead across its border. A muted node
does not run. A bypassed node passes the input of the same type on. Reroutes and pairs of SetNode and GetNode only pass a link on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

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
}
MUTED, BYPASSED = 2, 4  # modes of a node
INPUT_NODE, OUTPUT_NODE = "-10", "-20"  # ids of a subgraph's borders
PASSING = "Reroute", "SetNode"  # nodes that only pass their first input on
MAX_NODES = 10_000  # of a graph with all subgraphs
MAX_INSTANCES = 1_000  # of subgraphs
MAX_NESTED = 20  # subgraphs in each other
MAX_HOPS = 50  # borders, reroutes and bypassed nodes between two nodes
MAX_INPUTS = 500  # of a node


class _Link(NamedTuple):
    origin: str
    slot: Any
    kind: Any  # the type of what it carries, such as "MODEL"


@dataclass(frozen=True)
class _Scope:
    """The nodes of a workflow, or of one instance of a subgraph.

    links: by id; those to the border under "output SLOT". inputs: the names of the subgraph's inputs. setters: the inputs of the SetNodes
    by variable. prefix: what the graph puts before the ids of the nodes. parent: the scope that holds the instance. given: the inputs of
    the instance by name. values: its widgets by name. promoted: the widgets that it sets, by the id of the node in it.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    links: Mapping[str, _Link]
    inputs: tuple[str, ...]
    setters: Mapping[str, Mapping[str, Any]]
    prefix: str = ""
    parent: "_Scope | None" = None
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    promoted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def graph_of_workflow(workflow: Any) -> ComfyGraph:
    """The graph of a workflow, without its muted nodes; empty if it has too many nodes."""
    if not isinstance(workflow, dict):
        return {}
    subgraphs = [each for each in _list(workflow.get("definitions"), "subgraphs") if isinstance(each, dict) and "id" in each]
    return _Workflow({str(each["id"]): _scope(each) for each in subgraphs}).graph(_scope(workflow))


class _Workflow:
    """The expansion of one workflow; each instance of a subgraph has one scope."""

    def __init__(self, definitions: Mapping[str, _Scope]) -> None:
        self.definitions = definitions
        self.scopes: dict[str, _Scope] = {}

    def graph(self, root: _Scope) -> ComfyGraph:
        graph: dict[str, ComfyNode] = {}
        for scope, name, node in self._nodes(root, 0):
            if len(graph) >= MAX_NODES:
                return {}
            inputs = {**_widgets(node), **scope.promoted.get(name, {})}
            for entry in _entries(node):
                source = self._source(scope, entry)
                if source is not None:
                    inputs[str(entry.get("name"))] = source
            graph[scope.prefix + name] = {"class_type": node["type"], "inputs": inputs}
        return graph if len(self.scopes) < MAX_INSTANCES else {}

    def _nodes(self, scope: _Scope, depth: int) -> Iterator[tuple[_Scope, str, Mapping[str, Any]]]:
        """Every node that runs, with its scope and id."""
        for name, node in scope.nodes.items():
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in (*PASSING, "GetNode"):
                continue
            if node["type"] not in self.definitions:
                yield scope, name, node
            elif depth < MAX_NESTED and len(self.scopes) < MAX_INSTANCES:
                yield from self._nodes(self._inner(scope, name), depth + 1)

    def _inner(self, scope: _Scope, name: str) -> _Scope:
        """The scope of an instance of a subgraph."""
        prefix = f"{scope.prefix}{name}:"
        if prefix not in self.scopes:
            node = scope.nodes[name]
            given = {str(entry.get("name")): entry for entry in _entries(node)}
            instance = {"given": given, "values": _widgets(node), "promoted": _promoted(node)}
            self.scopes[prefix] = replace(self.definitions[node["type"]], prefix=prefix, parent=scope, **instance)
        return self.scopes[prefix]

    def _source(self, scope: _Scope, entry: Mapping[str, Any]) -> Any:
        """What an input receives: a link `[node, output]` of the graph, a widget's value of an instance, or None for nothing."""
        for _ in range(MAX_HOPS):
            link = scope.links.get(str(entry.get("link")))
            if link is None:
                return None
            step = self._step(scope, link)
            if not isinstance(step, tuple):
                return step
            scope, entry = step
        return None

    def _step(self, scope: _Scope, link: _Link) -> Any:
        """The source of a link, or the scope and the input entry that it is passed on from."""
        if link.origin == INPUT_NODE and scope.parent is not None:
            if not isinstance(link.slot, int) or not 0 <= link.slot < len(scope.inputs):
                return None
            name = scope.inputs[link.slot]
            entry = scope.given.get(name, {})
            return (scope.parent, entry) if entry.get("link") is not None else scope.values.get(name)
        if (node := scope.nodes.get(link.origin)) is None or node.get("mode") == MUTED:
            return None
        entries = _entries(node)
        if node.get("mode") == BYPASSED:
            kinds = ((each, scope.links.get(str(each.get("link")))) for each in entries)
            return next(((scope, each) for each, before in kinds if before is not None and before.kind == link.kind), None)
        if node["type"] in PASSING:
            return (scope, entries[0]) if entries else None
        if node["type"] == "GetNode":
            return _setter(scope, node)
        if node["type"] in self.definitions:
            inner = self._inner(scope, link.origin)
            return None if inner.prefix.count(":") > MAX_NESTED else (inner, {"link": f"output {link.slot}"})
        return [scope.prefix + link.origin, link.slot]


def _scope(holder: Mapping[str, Any]) -> _Scope:
    """The scope of a workflow or of a subgraph's definition."""
    nodes = {str(node.get("id")): node for node in _list(holder, "nodes") if isinstance(node, dict) and isinstance(node.get("type"), str)}
    links: dict[str, _Link] = {}
    for value in _list(holder, "links"):
        fields = value
        if isinstance(value, dict):
            fields = [value.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
        if not isinstance(fields, list) or len(fields) < 3:
            continue
        number, origin, slot, target, target_slot, kind = [*fields, None, None, None][:6]
        links[str(number)] = link = _Link(str(origin), slot, kind)
        if str(target) == OUTPUT_NODE:
            links[f"output {target_slot}"] = link
    inputs = tuple(str(each.get("name")) if isinstance(each, dict) else "" for each in _list(holder, "inputs"))
    setters: dict[str, Mapping[str, Any]] = {}
    for node in nodes.values():
        if node["type"] == "SetNode" and node.get("mode") != MUTED and (entries := _entries(node)):
            setters.setdefault(_variable(node), entries[0])
    return _Scope(nodes, links, inputs, setters)


def _setter(scope: _Scope | None, getter: Mapping[str, Any]) -> tuple[_Scope, Mapping[str, Any]] | None:
    """The input of the SetNode that stores the variable of a GetNode, in the same scope or one around it."""
    variable = _variable(getter)
    while scope is not None:
        if variable in scope.setters:
            return scope, scope.setters[variable]
        scope = scope.parent
    return None


def _variable(node: Mapping[str, Any]) -> str:
    return str(next(iter(_list(node, "widgets_values")), ""))


def _promoted(instance: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The values that an instance of a subgraph gives to widgets of the nodes in it, by their ids, if it stores them."""
    widgets, values = _list(instance.get("properties"), "proxyWidgets"), _list(instance, "widgets_values")
    promoted: dict[str, dict[str, Any]] = {}
    for widget, value in zip(widgets, values, strict=True) if len(widgets) == len(values) else ():
        if isinstance(widget, list) and len(widget) >= 2 and value is not None and not isinstance(value, list | dict):
            promoted.setdefault(str(widget[0]), {})[str(widget[1])] = value
    return promoted


def _widgets(node: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets by name."""
    if isinstance(values := node.get("widgets_values"), dict):
        return {str(name): value for name, value in values.items() if not isinstance(value, list)}
    plain = [None if isinstance(value, list | dict) else value for value in _list(node, "widgets_values")]
    names = list(WIDGETS.get(node["type"], ()))
    if promoted := _list(node.get("properties"), "proxyWidgets"):  # of an instance of a subgraph; "-1" marks the widgets of its inputs
        names = [str(widget[1]) if isinstance(widget, list) and len(widget) >= 2 and str(widget[0]) == "-1" else "" for widget in promoted]
    elif not names:  # newer editors store the names, but not that a seed is followed by a widget of its own
        for entry in _entries(node):
            if isinstance(entry.get("widget"), dict):
                names += [str(entry["widget"].get("name"))] + [""] * (entry["widget"].get("name") in ("seed", "noise_seed"))
    if not names:
        names = [f"text_{number}" if isinstance(value, str) else "value" for number, value in enumerate(plain, 1)]
        names = ["value"] if node["type"].startswith("Primitive") else names
    # Not strict: versions of the editor store more or fewer values.
    return {name: value for name, value in zip(names, plain, strict=False) if name and value is not None}


def _entries(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs of a node."""
    return [entry for entry in _list(node, "inputs")[:MAX_INPUTS] if isinstance(entry, dict)]


def _list(holder: Any, name: str) -> list[Any]:
    return value if isinstance(holder, dict) and isinstance(value := holder.get(name), list) else []
