"""ComfyUI's graphs: conditions and values are followed through any nodes, and only the sampler of the saved image counts."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.pipelines.metadata.readers import ForeignMetadata, describe_unread, read_foreign


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


def test_embeddings_in_prompts_are_words_and_are_listed():
    yes = "a fox, embedding:mycat and (embedding:sub\\soft-light.safetensors:1.2)"
    found = read(
        graph(
            yes=node("CLIPTextEncode", text=yes, clip=["model", 1]), no=node("CLIPTextEncode", text="embedding:bad.pt", clip=["model", 1])
        )
    )
    assert found.request["prompt"] == "a fox, mycat and (soft-light:1.2)"
    assert found.request["negative_prompt"] == "bad"
    assert found.unused == {"embeddings": "mycat, soft-light, bad"}


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


LINK_FIELDS = "id", "origin_id", "origin_slot", "target_id", "target_slot", "type"


def as_objects(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with its links as objects (version 1.0)."""
    return {**workflow, "links": [dict(zip(LINK_FIELDS, link, strict=True)) for link in workflow["links"]]}


def into_subgraph(workflow: dict[str, Any], name: str, inner: set[str]) -> dict[str, Any]:
    """The workflow with some nodes, by type, in a subgraph of this name; its definitions are kept."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] in inner}
    boundary: dict[str, list[Any]] = {"inputs": [], "outputs": []}
    instance: dict[str, Any] = {"id": 100 + len(name), "type": name, "inputs": [], "mode": 0}
    outside, inside = [], []
    for number, origin, slot, target, target_slot, kind in workflow["links"]:
        if origin in nodes and target in nodes:
            inside.append([number, origin, slot, target, target_slot, kind])
        elif target in nodes:
            inside.append([number, -10, len(boundary["inputs"]), target, target_slot, kind])
            outside.append([number, origin, slot, instance["id"], len(boundary["inputs"]), kind])
            instance["inputs"].append({"name": f"in{number}", "link": number})
            boundary["inputs"].append({"name": f"in{number}"})
        elif origin in nodes:
            inside.append([number, origin, slot, -20, len(boundary["outputs"]), kind])
            outside.append([number, instance["id"], len(boundary["outputs"]), target, target_slot, kind])
            boundary["outputs"].append({"name": f"out{number}"})
        else:
            outside.append([number, origin, slot, target, target_slot, kind])
    definition = as_objects({"id": name, "nodes": list(nodes.values()), "links": inside, **boundary})
    subgraphs = [*workflow.get("definitions", {}).get("subgraphs", ()), definition]
    rest = [node for node in workflow["nodes"] if node["id"] not in nodes]
    return {"nodes": [*rest, instance], "links": outside, "definitions": {"subgraphs": subgraphs}}


SAMPLING = {"MyKSampler", "MyCheckpointLoaderSimple", "MyEmptyLatentImage"}
TEXT_KIND = {"MyCLIPTextEncode"}


@pytest.mark.parametrize("parts", [[TEXT_KIND], [SAMPLING], [TEXT_KIND, SAMPLING], [SAMPLING, {"s", *TEXT_KIND}], [SAMPLING | TEXT_KIND]])
@pytest.mark.parametrize("objects", [False, True])
def test_subgraphs_and_links_as_objects_are_read_as_the_graph(parts, objects):
    workflow = to_workflow(graph())
    for depth, kinds in enumerate(parts, 1):
        workflow = into_subgraph(workflow, "s" * depth, kinds)
    found = read_foreign({"workflow": json.dumps(as_objects(workflow) if objects else workflow)})
    assert found is not None
    assert dict(found.request) == EXPECTED
    assert found.model == "dream.safetensors"


def test_a_widget_of_a_subgraph_sets_the_input_inside():
    workflow = into_subgraph(to_workflow(graph()), "s", {"MyKSampler"})
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


def text_in_subgraph(**instance: Any) -> dict[str, Any]:
    """A workflow whose text "old" is in a subgraph with the fields of its instance."""
    inputs = [{"name": "text", "widget": {"name": "text"}, "link": None}]
    inner = {"id": 6, "type": "CLIPTextEncode", "inputs": [{"name": "text", "link": 1}], "widgets_values": ["old"]}
    links = [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 6, "target_slot": 0, "type": "STRING"},
             {"id": 2, "origin_id": 6, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "CONDITIONING"}]  # fmt: skip
    return {
        "nodes": [
            {"id": 1, "type": "KSampler", "inputs": [{"name": "positive", "link": 7}, {"name": "model", "link": 8}],
             "widgets_values": [5, "fixed", 25, 8, "euler", "normal", 1]},
            {"id": 2, "type": "sub", "inputs": inputs, **instance},
            {"id": 3, "type": "CheckpointLoaderSimple", "widgets_values": ["dream"]},
        ],
        "links": [[7, 2, 0, 1, 0, "CONDITIONING"], [8, 3, 0, 1, 1, "MODEL"]],
        "definitions": {"subgraphs": [{"id": "sub", "inputs": [{"name": "text"}], "nodes": [inner], "links": links}]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("instance", "prompt"),
    [
        ({}, "old"),
        ({"widgets_values": ["a fox"]}, "a fox"),
        ({"widgets_values": ["a fox"], "properties": {"proxyWidgets": [["-1", "text"]]}}, "a fox"),
        ({"inputs": [], "widgets_values": ["a fox"], "properties": {"proxyWidgets": [["6", "text"]]}}, "a fox"),
        ({"inputs": [], "widgets_values": [], "properties": {"proxyWidgets": [["6", "text"]]}}, "old"),
    ],
)
def test_an_instance_of_a_subgraph_sets_widgets_in_it(instance, prompt):
    found = read_foreign({"workflow": json.dumps(text_in_subgraph(**instance))})
    assert found is not None
    assert (found.request["prompt"], found.request["seed"], found.model) == (prompt, 5, "dream")


@pytest.mark.parametrize("mode", [2, 4])
def test_a_muted_or_bypassed_subgraph_gives_no_prompt(mode):
    texts = {"workflow": json.dumps(text_in_subgraph(mode=mode))}
    assert read_foreign(texts) is None
    assert describe_unread(texts) == (
        "The image holds a graph of ComfyUI, but no prompt leads to a sampler in it. Its nodes: KSampler, CheckpointLoaderSimple."
    )


def test_texts_that_are_not_understood_are_named():
    assert describe_unread({"prompt": "{}", "Comment": "x"}) == (
        "The image has no generation parameters that are understood. The names of its texts: prompt, Comment."
    )
    assert describe_unread({}) == "The image has no generation parameters."


def test_the_condition_before_a_reroute_keeps_its_side():
    reroutes = {f"r{side}": node("Reroute", **{"": ["control", output]}) for output, side in enumerate(("positive", "negative"))}
    nodes = graph(control=CONTROL, sampler=sampler(positive=["rpositive", 0], negative=["rnegative", 0]), **reroutes)
    nodes["net"], nodes["photo"] = node("ControlNetLoader"), node("LoadImage")
    workflow = to_workflow(nodes)
    for each in workflow["nodes"]:
        each["type"] = each["type"].replace("MyReroute", "Reroute")
    found = read_foreign({"workflow": json.dumps(workflow)})
    assert found is not None
    assert dict(found.request) == EXPECTED


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
