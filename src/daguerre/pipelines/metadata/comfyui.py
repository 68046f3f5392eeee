"""Read ComfyUI's graphs: the settings of the sampler, its prompts, and the model files.

A graph is a dictionary of nodes, `{"3": {"class_type": "KSampler", "inputs": {"steps": 20, "positive": ["6", 0], …}}, …}`, where an input
is a value or a link `[node, output]`. A workflow is the editor's form of it: nodes with lists of widgets, and a table of links.
"""

from collections.abc import Iterator, Mapping
from typing import Any

ComfyNode = Mapping[str, Any]  # class_type and inputs
ComfyGraph = Mapping[str, ComfyNode]

# The widgets of the nodes that are read, in the order in which the editor stores their values.
WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "VAELoader": ("vae_name",),
    "LoadImage": ("image",),
    "ControlNetLoader": ("control_net_name",),
}
TEXT_INPUTS = ("text", "text_g", "string", "value")
SETTINGS = ("steps", "cfg", "sampler_name", "scheduler", "seed", "noise_seed", "denoise", "width", "height")
FILES = ("lora_name", "vae_name", "control_net_name", "image")


def comfy_values(graphs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the graphs of an image, which are stored under "prompt" and "workflow"."""
    graph = _graph(graphs["prompt"]) if "prompt" in graphs else _from_workflow(graphs["workflow"])
    sampler = next((node for node in graph.values() if "Sampler" in node["class_type"] and _links(node)), None)
    if sampler is None:
        return {}
    values: dict[str, Any] = {}
    for side, name in (("positive", "prompt"), ("negative", "negative_prompt")):
        start = next((node["inputs"].get(side) for node in [sampler, *_upstream(graph, sampler)] if side in node["inputs"]), None)
        texts = (node["inputs"].get(text) for node in _with_upstream(graph, start) for text in TEXT_INPUTS)
        values[name] = next((text for text in texts if isinstance(text, str)), "")
    for node in (sampler, *_upstream(graph, sampler)):
        plain = {name: value for name, value in node["inputs"].items() if not isinstance(value, list | dict)}
        values |= {name: plain[name] for name in SETTINGS if name in plain and name not in values}
        if "ckpt_name" in plain:
            values.setdefault("model", plain["ckpt_name"])
        values |= {f"{node['class_type']} {name}": plain[name] for name in FILES if name in plain}
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
    """The graph of an editor's workflow."""
    sources = {str(link[0]): [str(link[1]), link[2]] for link in _list(workflow, "links") if isinstance(link, list) and len(link) >= 3}
    graph: dict[str, ComfyNode] = {}
    for node in _list(workflow, "nodes"):
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            continue
        # Not strict: versions of the editor store more or fewer values.
        inputs: dict[str, Any] = {
            name: value for name, value in zip(WIDGETS.get(node["type"], ()), _list(node, "widgets_values"), strict=False) if name
        }
        for entry in _list(node, "inputs"):
            if isinstance(entry, dict) and str(entry.get("link")) in sources:
                inputs[str(entry.get("name"))] = sources[str(entry["link"])]
        graph[str(node.get("id"))] = {"class_type": node["type"], "inputs": inputs}
    return graph


def _list(holder: Mapping[str, Any], name: str) -> list[Any]:
    return value if isinstance(value := holder.get(name), list) else []


def _upstream(graph: ComfyGraph, node: ComfyNode) -> Iterator[ComfyNode]:
    """Every node that this one depends on, nearest first, each once."""
    queue, visited = _links(node), set()
    while queue:
        name = queue.pop(0)
        if name not in visited and name in graph:
            visited.add(name)
            yield graph[name]
            queue += _links(graph[name])


def _with_upstream(graph: ComfyGraph, link: Any) -> Iterator[ComfyNode]:
    """The node that a link comes from, and those upstream of it."""
    if isinstance(link, list) and link and str(link[0]) in graph:
        yield graph[str(link[0])]
        yield from _upstream(graph, graph[str(link[0])])


def _links(node: ComfyNode) -> list[str]:
    return [str(value[0]) for value in node["inputs"].values() if isinstance(value, list) and len(value) == 2]
