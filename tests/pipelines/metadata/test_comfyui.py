"""ComfyUI's graphs: conditions and values are followed through any nodes, and only the sampler of the saved image counts."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.pipelines.metadata.readers import ForeignMetadata, read_foreign


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(**changes: Any) -> dict[str, Any]:
    """A graph that saves one image, with some nodes replaced or added."""
    return {
        "save": node("SaveImage", images=["decode", 0]),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
        "sampler": sampler(),
        "model": node("CheckpointLoaderSimple", ckpt_name="dream.safetensors"),
        "latent": node("EmptyLatentImage", width=640, height=384, batch_size=1),
        "yes": node("CLIPTextEncode", text="a fox", clip=["model", 1]),
        "no": node("CLIPTextEncode", text="rain", clip=["model", 1]),
        **changes,
    }


def sampler(**changes: Any) -> dict[str, Any]:
    inputs = {"seed": 5, "steps": 25, "cfg": 8, "sampler_name": "euler", "scheduler": "karras", "denoise": 1, "model": ["model", 0]}
    links = {"positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["latent", 0]}
    return node("KSampler", **{**inputs, **links, **changes})


def read(nodes: dict[str, Any]) -> ForeignMetadata:
    found = read_foreign({"prompt": json.dumps(nodes)})
    assert found is not None
    return found


EXPECTED = {
    "prompt": "a fox",
    "negative_prompt": "rain",
    "steps": 25,
    "guidance_scale": 8.0,
    "sampler": "euler",
    "spacing": "karras",
    "seed": 5,
    "width": 640,
    "height": 384,
}
CONTROL = node("ControlNetApplyAdvanced", positive=["yes", 0], negative=["no", 0], control_net=["net", 0], image=["photo", 0], strength=1)
CUSTOM = {
    "sampler": node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["select", 0],
        sigmas=["sigmas", 0],
        latent_image=["latent", 0],
    ),
    "noise": node("RandomNoise", noise_seed=5),
    "guider": node("CFGGuider", model=["model", 0], positive=["yes", 0], negative=["no", 0], cfg=8),
    "select": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("BasicScheduler", model=["model", 0], scheduler="karras", steps=25, denoise=1),
}


@pytest.mark.parametrize(
    ("nodes", "changes"),
    [
        ({}, {}),
        ({"sampler": sampler(positive=["control", 0], negative=["control", 1]), "control": CONTROL}, {}),
        ({"sampler": sampler(positive=["range", 0]), "range": node("ConditioningSetTimestepRange", conditioning=["yes", 0], start=0)}, {}),
        ({"sampler": sampler(negative=["zero", 0]), "zero": node("ConditioningZeroOut", conditioning=["yes", 0])}, {"negative_prompt": ""}),
        (
            {
                "sampler": sampler(positive=["both", 0]),
                "both": node("ConditioningCombine", conditioning_1=["yes", 0], conditioning_2=["more", 0]),
                "more": node("CLIPTextEncode", text="a hen", clip=["model", 1]),
            },
            {"prompt": "a fox AND a hen"},
        ),
        ({"yes": node("CLIPTextEncodeSDXL", text_g="a fox", text_l="a fox", width=1024, height=1024, clip=["model", 1])}, {}),
        ({"yes": node("CLIPTextEncode", text=["string", 0], clip=["model", 1]), "string": node("PrimitiveString", value="a fox")}, {}),
        (
            {
                "yes": node("CLIPTextEncode", text=["join", 0], clip=["model", 1]),
                "join": node("StringConcatenate", string_a=["string", 0], string_b="in rain", delimiter=" "),
                "string": node("PrimitiveString", value="a fox"),
            },
            {"prompt": "a fox in rain"},
        ),
        (
            {
                "yes": node("CLIPTextEncode", text=["show", 0], clip=["model", 1]),
                "show": node("ShowText|pysssss", text=["wild", 0]),
                "wild": node("ImpactWildcardProcessor", wildcard_text="a {fox|hen}", populated_text="a fox", mode="fixed"),
            },
            {},
        ),
        (
            {
                "yes": node("CLIPTextEncode", text=["switch", 0], clip=["model", 1]),
                "switch": node("ImpactSwitch", select=2, input1=["hen", 0], input2=["fox", 0]),
                "hen": node("PrimitiveString", value="a hen"),
                "fox": node("PrimitiveString", value="a fox"),
            },
            {},
        ),
        (
            {
                "sampler": sampler(steps=["steps", 0], seed=["seed", 0], sampler_name=["name", 0]),
                "steps": node("PrimitiveInt", value=25),
                "seed": node("Seed (rgthree)", seed=5),
                "name": node("Reroute", anything=["names", 0]),
                "names": node("SamplerSelector", sampler_name="euler"),
            },
            {},
        ),
        (CUSTOM, {}),
        ({**CUSTOM, "sigmas": node("KarrasScheduler", steps=25, sigma_max=14, sigma_min=0.03, rho=7)}, {}),
        ({**CUSTOM, "select": node("SamplerEulerAncestral", eta=1, s_noise=1)}, {"sampler": "euler_a"}),
        ({"sampler": sampler(sampler_name="euler_cfg_pp", cfg=0.8)}, {"guidance_scale": 0.8, "cfg_plus_plus": True}),
        ({"sampler": sampler(sampler_name="uni_pc")}, {"sampler": "unipc_bh1"}),
        ({"sampler": sampler(scheduler="simple")}, {"spacing": "simple"}),
        (
            {
                "yes": node("CLIPTextEncode", text="a fox", clip=["skip", 0]),
                "skip": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["model", 1]),
            },
            {"clip_skip": 2},
        ),
        (
            {
                "sampler": node("KSampler (Efficient)", **{**sampler()["inputs"], "positive": ["loader", 1], "negative": ["loader", 2]}),
                "loader": node("Efficient Loader", ckpt_name="dream.safetensors", positive="a fox", negative="rain"),
            },
            {},
        ),
    ],
)
def test_conditions_and_values_are_followed_through_the_graph(nodes, changes):
    found = read(graph(**nodes))
    assert (found.software, found.model) == ("ComfyUI", "dream.safetensors")
    assert dict(found.request) == EXPECTED | changes


def test_only_the_sampler_of_the_saved_image_counts():
    other = sampler(seed=99, steps=3, positive=["no", 0])
    preview = node("PreviewImage", images=["other", 0])
    found = read({"preview": preview, "other": other, **graph()})
    assert dict(found.request) == EXPECTED
    assert not found.unused


def test_later_passes_are_listed():
    second = sampler(seed=6, steps=10, denoise=0.5, latent_image=["larger", 0])
    found = read(
        graph(
            decode=node("VAEDecode", samples=["second", 0]),
            second=second,
            larger=node("LatentUpscale", samples=["sampler", 0], width=1280, height=768),
        )
    )
    assert dict(found.request) == EXPECTED
    assert found.unused["pass 2"].startswith("KSampler denoise 0.5, steps 10, cfg 8, sampler_name euler")


@pytest.mark.parametrize("name", ["euler_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep", "dpm_adaptive"])
def test_samplers_without_a_counterpart_are_listed(name):
    found = read(graph(sampler=sampler(sampler_name=name)))
    assert "sampler" not in found.request
    assert found.unused["sampler"] == name


def test_computed_values_are_listed():
    found = read(graph(sampler=sampler(steps=["sum", 0]), sum=node("MathInt", a=5, b=20, operation="add")))
    assert "steps" not in found.request
    assert found.unused["KSampler steps"] == "computed by MathInt"


def test_a_prompt_that_is_not_found_is_never_empty():
    nodes = graph(yes=node("CLIPTextEncode", text=["made", 0], clip=["model", 1]), made=node("Captioner", image=["photo", 0]))
    assert read_foreign({"prompt": json.dumps(nodes)}) is None
    circle = graph(yes=node("ConditioningCombine", conditioning_1=["yes", 0], conditioning_2=["yes", 0]))
    assert read_foreign({"prompt": json.dumps(circle)}) is None


def test_a_deep_graph_of_joined_conditions_is_read_once_per_node():
    nodes = graph(sampler=sampler(positive=["c199", 0]))
    for i in range(200):
        before = [f"c{i - 1}" if i else "yes", 0]
        nodes[f"c{i}"] = node("ConditioningAverage", conditioning_to=before, conditioning_from=before)
    assert read(nodes).request["prompt"] == "a fox"


def to_workflow(nodes: dict[str, Any]) -> dict[str, Any]:
    """The editor's form of a graph, with the names of the widgets as newer editors store them."""
    numbers = {name: number for number, name in enumerate(nodes, 1)}
    links, entries = [], []
    for name, each in nodes.items():
        inputs, values = [], []
        for key, value in each["inputs"].items():
            if isinstance(value, list):
                links.append([len(links) + 1, numbers[value[0]], value[1], numbers[name], 0, "*"])
                inputs.append({"name": key, "link": len(links)})
            else:
                inputs.append({"name": key, "widget": {"name": key}, "link": None})
                values += [value, "fixed"] if key in ("seed", "noise_seed") else [value]
        entries.append({"id": numbers[name], "type": f"My{each['class_type']}", "inputs": inputs, "widgets_values": values, "mode": 0})
    return {"nodes": entries, "links": links}


def test_a_workflow_with_named_widgets_is_read_as_its_graph():
    found = read_foreign({"workflow": json.dumps(to_workflow(graph()))})
    assert found is not None
    assert dict(found.request) == EXPECTED


def test_muted_and_bypassed_nodes_and_named_links_of_a_workflow():
    workflow = {
        "nodes": [
            {"id": 1, "type": "KSampler", "inputs": [{"name": "positive", "link": 1}, {"name": "model", "link": 4}],
             "widgets_values": [5, "fixed", 25, 8, "euler", "normal", 1]},
            {"id": 2, "type": "GetNode", "widgets_values": ["yes"]},
            {"id": 3, "type": "SetNode", "inputs": [{"name": "CONDITIONING", "link": 2}], "widgets_values": ["yes"]},
            {"id": 4, "type": "CLIPTextEncode", "inputs": [], "widgets_values": ["a fox"]},
            {"id": 5, "type": "LoraLoader", "mode": 4, "inputs": [{"name": "model", "link": 3}], "widgets_values": ["ink", 1, 1]},
            {"id": 6, "type": "CheckpointLoaderSimple", "widgets_values": ["dream"]},
            {"id": 7, "type": "KSampler", "mode": 2, "inputs": [{"name": "positive", "link": 1}], "widgets_values": [9, "fixed", 9]},
        ],
        "links": [[1, 2, 0, 1, 1, "*"], [2, 4, 0, 3, 0, "*"], [3, 6, 0, 5, 0, "MODEL"], [4, 5, 0, 1, 0, "MODEL"]],
    }  # fmt: skip
    found = read_foreign({"workflow": json.dumps(workflow)})
    assert found is not None
    assert (found.request["prompt"], found.request["seed"], found.model, dict(found.unused)) == ("a fox", 5, "dream", {})


def with_object_links(workflow: dict[str, Any]) -> dict[str, Any]:
    """A workflow in version 1 of the editor's form, in which a link is an object."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {**workflow, "version": 1, "links": [dict(zip(names, link, strict=True)) for link in workflow["links"]]}


def in_subgraph(workflow: dict[str, Any], *moved: str) -> dict[str, Any]:
    """A workflow with the nodes of these types moved into a subgraph, whose inputs and outputs are the links that cross its border."""
    inside = {entry["id"] for entry in workflow["nodes"] if entry["type"] in moved}
    inner_links, outer_links, inputs, outputs, entries = [], [], [], [], []
    for number, origin, slot, target, target_slot, kind in workflow["links"]:
        if origin in inside and target in inside:
            inner_links.append([number, origin, slot, target, target_slot, kind])
        elif target in inside:
            inner_links.append([number, -10, len(inputs), target, target_slot, kind])
            outer_links.append([number + 1000, origin, slot, 99, len(inputs), kind])
            entries.append({"name": f"in {number}", "link": number + 1000})
            inputs.append({"name": f"in {number}"})
        elif origin in inside:
            inner_links.append([number + 2000, origin, slot, -20, len(outputs), kind])
            outer_links.append([number, 99, len(outputs), target, target_slot, kind])
            outputs.append({"name": f"out {number}"})
        else:
            outer_links.append([number, origin, slot, target, target_slot, kind])
    nodes = {True: [], False: []}
    for entry in workflow["nodes"]:
        nodes[entry["id"] in inside].append(entry)
    definition = {"id": "8f3c-sub", "inputNode": {"id": -10}, "outputNode": {"id": -20}, "inputs": inputs, "outputs": outputs,
                  "nodes": nodes[True], "links": inner_links}  # fmt: skip
    instance = {"id": 99, "type": "8f3c-sub", "inputs": entries, "widgets_values": [], "mode": 0}
    definition = with_object_links(definition)
    return {"nodes": [*nodes[False], instance], "links": outer_links, "definitions": {"subgraphs": [definition]}}


@pytest.mark.parametrize(
    "workflow",
    [
        with_object_links(to_workflow(graph())),
        in_subgraph(to_workflow(graph()), "MyKSampler"),
        in_subgraph(to_workflow(graph()), "MyCLIPTextEncode"),
        in_subgraph(to_workflow(graph()), "MyKSampler", "MyCLIPTextEncode", "MyEmptyLatentImage", "MyCheckpointLoaderSimple"),
        with_object_links(in_subgraph(to_workflow(graph()), "MyKSampler", "MyVAEDecode")),
    ],
)
def test_object_links_and_subgraphs_are_read_as_the_graph(workflow):
    found = read_foreign({"workflow": json.dumps(workflow)})
    assert found is not None
    assert dict(found.request) == EXPECTED
    assert found.model == "dream.safetensors"


def test_a_widget_of_a_subgraph_sets_the_input_inside():
    workflow = in_subgraph(to_workflow(graph()), "MyKSampler")
    (definition,) = workflow["definitions"]["subgraphs"]
    (sampler_node,) = definition["nodes"]
    steps = next(entry for entry in sampler_node["inputs"] if entry["name"] == "steps")
    steps["link"] = 5000
    definition["links"].append({"id": 5000, "origin_id": -10, "origin_slot": len(definition["inputs"]), "target_id": 0, "target_slot": 0})
    definition["inputs"].append({"name": "steps"})
    instance = workflow["nodes"][-1]
    assert dict(read_foreign({"workflow": json.dumps(workflow)}).request) == EXPECTED  # its own widget, since the input is not linked
    instance["inputs"].append({"name": "steps", "widget": {"name": "steps"}, "link": None})
    instance["widgets_values"] = [33]
    assert dict(read_foreign({"workflow": json.dumps(workflow)}).request) == {**EXPECTED, "steps": 33}


@pytest.mark.parametrize("mode", [2, 4])
def test_a_muted_or_bypassed_sampler_is_not_the_one_that_generated(mode):
    workflow = to_workflow(graph())
    (kept,) = (entry for entry in workflow["nodes"] if entry["type"] == "MyKSampler")
    other = {**kept, "id": 77, "mode": mode, "widgets_values": [9, "fixed", 9, 3, "heun", "normal", 1]}
    workflow["nodes"].insert(0, other)
    assert dict(read_foreign({"workflow": json.dumps(workflow)}).request) == EXPECTED


@pytest.mark.parametrize("levels", [1, 7])
def test_subgraphs_that_hold_each_other_end(levels):
    def nodes(level: int) -> list[dict[str, Any]]:
        return [{"id": number, "type": f"level {level}", "inputs": []} for number in range(10)]

    subgraphs = [{"id": f"level {i}", "nodes": nodes((i + 1) % levels) if levels == 1 or i < 6 else [], "links": []} for i in range(levels)]
    workflow = {"nodes": nodes(0), "links": [], "definitions": {"subgraphs": subgraphs}}
    assert read_foreign({"workflow": json.dumps(workflow)}) is None


@settings(max_examples=100, deadline=None)
@given(
    st.permutations(list(graph())),
    st.lists(st.sampled_from(["Reroute", "ConditioningSetArea", "unCLIPConditioning", "ControlNetApply"]), max_size=4),
    st.lists(st.sampled_from(["Reroute", "ShowText|pysssss", "Text String", "StringFunction"]), max_size=4),
)
def test_any_order_of_nodes_and_any_chain_between_text_and_sampler(order, conditions, texts):
    nodes = graph()
    for i, kind in enumerate(conditions):
        nodes[f"c{i}"] = node(kind, conditioning=[f"c{i - 1}" if i else "yes", 0], strength=1.0)
    for i, kind in enumerate(texts):
        nodes[f"t{i}"] = node(kind, text=[f"t{i - 1}", 0] if i else "a fox")
    if conditions:
        nodes["sampler"] = sampler(positive=[f"c{len(conditions) - 1}", 0])
    if texts:
        nodes["yes"] = node("CLIPTextEncode", text=[f"t{len(texts) - 1}", 0], clip=["model", 1])
    assert dict(read({**{name: nodes[name] for name in order}, **nodes}).request) == EXPECTED
