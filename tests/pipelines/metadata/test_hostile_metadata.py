"""Damaged and hostile metadata gives an error of daguerre or no request, within two seconds."""

import io
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata.infotext import parse_infotext
from daguerre.pipelines.metadata.readers import describe_unread, read_foreign
from daguerre.pipelines.metadata.write import Provenance, daguerre_json, read_image_texts, write_image_with_metadata
from daguerre.pipelines.request import Request, with_fields

INFOTEXT = (
    "a fox, (red:1.2)\nNegative prompt: rain\nSteps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 31, Size: 8x8, "
    'Model: ferry, Hashes: {"a, Seed: 1": [1, {"b": 2}]}, Lora hashes: "a: 1, b: 2"\nTemplate: a {fox|hen}, x\nNegative Template: y'
)
GRAPH = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": ["7", 0], "cfg": 8, "sampler_name": "euler_cfg_pp",
          "scheduler": "karras", "positive": ["5", 0], "negative": ["6", 0], "model": ["2", 0], "latent_image": ["3", 0]}},
    "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dream"}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
    "4": {"class_type": "StringConcatenate", "inputs": {"string_a": "a fox", "string_b": ["8", 0], "delimiter": " "}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": ["4", 0], "clip": ["2", 1]}},
    "6": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["5", 0]}},
    "7": {"class_type": "PrimitiveInt", "inputs": {"value": 20}},
    "8": {"class_type": "ImpactSwitch", "inputs": {"select": 1, "input1": "red", "input2": ["4", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}  # fmt: skip
WORKFLOW = {
    "nodes": [
        {"id": 1, "type": "KSampler", "inputs": [{"name": "positive", "link": 1}], "widgets_values": [5, "x", 25, 8, "euler"]},
        {"id": 2, "type": "Unknown", "mode": 4, "inputs": [{"name": "text", "widget": {"name": "text"}}], "widgets_values": ["a fox"]},
        {"id": 3, "type": "GetNode", "widgets_values": ["x"]},
        {"id": 4, "type": "SetNode", "inputs": [{"name": "a", "link": 2}], "widgets_values": ["x"]},
    ],
    "links": [[1, 2, 0, 1, 1, "CONDITIONING"], [2, 3, 0, 4, 0, "STRING"]],
}
SUBGRAPHS = {
    "nodes": [
        {"id": 1, "type": "KSampler", "inputs": [{"name": "positive", "link": 1}, {"name": "model", "link": 3}], "widgets_values": [5]},
        {"id": 2, "type": "s", "inputs": [{"name": "clip", "link": 2}, {"name": "text", "widget": {"name": "text"}, "link": None}],
         "widgets_values": ["a fox"], "properties": {"proxyWidgets": [["-1", "text"]]}},
        {"id": 3, "type": "Loader", "mode": 4, "inputs": [{"name": "x", "link": 4}]},
        {"id": 4, "type": "Reroute", "inputs": [{"name": "", "link": 5}]},
    ],
    "links": [{"id": 1, "origin_id": 2, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "C"}, [2, 3, 0, 2, 0, "CLIP"],
              [3, 3, 1, 1, 1, "MODEL"], [4, 4, 0, 3, 0, "MODEL"], [5, 2, 0, 4, 0, "MODEL"]],
    "definitions": {"subgraphs": [{
        "id": "s", "inputs": [{"name": "clip"}, {"name": "text"}],
        "nodes": [{"id": 6, "type": "CLIPTextEncode", "inputs": [{"name": "clip", "link": 1}, {"name": "text", "link": 2}]}],
        "links": [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 6, "target_slot": 0, "type": "CLIP"},
                  {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 6, "target_slot": 1, "type": "STRING"},
                  {"id": 3, "origin_id": 6, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "C"}],
    }]},
}  # fmt: skip
JSON_REQUEST = {"prompt": "a fox", "negative_prompt": "x", "steps": 5, "cfg_scale": 7, "seed": 1, "sampler": "DDIM CFG++", "size": "8x8",
                "clip_skip": 1, "num_inference_steps": 4, "c": "a", "uc": "b", "model": {"name": "y"}, "Comment": "{}",
                "image": {"prompt": [{"prompt": "a [b]", "weight": 1}], "sampler": "k_lms"}}  # fmt: skip
PIECES = [
    "\n",
    "\r",
    "\0",
    '"',
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "-",
    "Steps: 1, ",
    "Negative prompt:",
    "null",
    "1e999",
    "-1",
    "\ufeff",
    "é",
    "雪",
]


def mutated_text(text: str, random: random.Random) -> str:
    """The text with a few parts deleted, repeated, moved or replaced."""
    for _ in range(random.randint(1, 6)):
        start, length = random.randrange(len(text) + 1), random.choice([1, 1, 3, 20])
        part = text[start : start + length]
        new = random.choice(["", part * random.choice([2, 50]), random.choice(PIECES), random.choice(PIECES) * 30, part[::-1]])
        text = text[:start] + new + text[start + length :]
    return text


def mutated_json(value: Any, random: random.Random) -> Any:
    """The value with a few parts replaced by others of it or by values of other types."""
    pool: list[Any] = [None, True, -1, 10**400, 0.5, "", "x", [], {}, ["1", 0], ["5", 0], [[], {}], {"class_type": 1}]

    def walk(each: Any) -> Any:
        if isinstance(each, dict | list):
            pool.append(each)
        if random.random() < 0.06:
            return random.choice(pool)
        if isinstance(each, dict):
            return {name if random.random() > 0.03 else "text": walk(inner) for name, inner in each.items()}
        return [walk(inner) for inner in each] if isinstance(each, list) else each

    return walk(value)


def file_with_texts(suffix: str) -> bytes:
    file = io.BytesIO()
    origin = Provenance(Request(prompt="a fox", seed=7), 0, "tiny", "0", "2", "cpu", "float32")
    write_image_with_metadata(file, Image.new("RGBA" if suffix == ".png" else "RGB", (8, 8)), suffix, origin)
    return file.getvalue()


def file_with_xmp() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(
        "XML:com.adobe.xmp", "<exif:UserComment><rdf:Alt><rdf:li>{}</rdf:li></rdf:Alt></exif:UserComment><dc:description>a</dc:description>"
    )
    info.add_text("parameters", INFOTEXT)
    info.add_text("Comment", json.dumps(JSON_REQUEST), zip=True)
    exif = Image.Exif()
    exif[ExifTags.Base.UserComment] = INFOTEXT
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info, exif=exif)
    return file.getvalue()


FILES = [file_with_texts(".png"), file_with_texts(".jpg"), file_with_texts(".webp"), file_with_xmp()]


def mutated_file(random: random.Random) -> bytes:
    data = bytearray(random.choice(FILES))
    for _ in range(random.randint(1, 8)):
        start = random.randrange(len(data))
        change = random.choice(["flip", "cut", "insert", "zero"])
        if change == "flip":
            data[start] ^= 1 << random.randrange(8)
        elif change == "cut" and random.random() < 0.3 and start > 8:
            del data[start:]
        elif change == "insert":
            data[start:start] = random.randbytes(random.choice([1, 4, 40]))
        else:
            data[start : start + 4] = bytes(len(data[start : start + 4]))
    return bytes(data)


def read_file(data: bytes) -> None:
    try:
        texts = read_image_texts(io.BytesIO(data))[1]  # type: ignore[arg-type] # Pillow opens files, too
        if request := daguerre_json(texts):
            Provenance.from_json(request)
    except DaguerreError:
        return
    read_checked(texts)


def read_checked(texts: dict[str, str]) -> None:
    assert describe_unread(texts)
    if found := read_foreign(texts):
        with_fields(Request(), found.request)
        found.command()


READERS: dict[str, Callable[[random.Random], Any]] = {
    "infotext": lambda random: read_checked({"parameters": mutated_text(INFOTEXT, random)}),
    "Draw Things": lambda random: read_checked({"x": mutated_text("a\n-b\nSteps: 1, Seed: 3, Size: 8x8, Seed Mode: Legacy", random)}),
    "Dream": lambda random: read_checked({"Dream": mutated_text('"a fox [rain]" -s 5 -S 42 -W 64 -H64 -C7.5 -A k_lms --x=3', random)}),
    "JSON text": lambda random: read_checked(
        dict.fromkeys(("parameters", "invokeai_metadata", "sd-metadata"), mutated_text(json.dumps(JSON_REQUEST), random))
    ),
    "JSON values": lambda random: read_checked(
        {random.choice(["parameters", "invokeai_metadata", "sd-metadata"]): json.dumps(mutated_json(JSON_REQUEST, random))}
    ),
    "NovelAI": lambda random: read_checked({"Software": "NovelAI", "Comment": json.dumps(mutated_json(JSON_REQUEST, random))}),
    "Easy Diffusion": lambda random: read_checked({name: mutated_text(str(value), random) for name, value in JSON_REQUEST.items()}),
    "ComfyUI graph": lambda random: read_checked({"prompt": json.dumps(mutated_json(GRAPH, random))}),
    "ComfyUI workflow": lambda random: read_checked({"workflow": json.dumps(mutated_json(WORKFLOW, random))}),
    "ComfyUI subgraphs": lambda random: read_checked({"workflow": json.dumps(mutated_json(SUBGRAPHS, random))}),
    "InvokeAI weights": lambda random: read_checked(
        {"invokeai_metadata": json.dumps({"positive_prompt": mutated_text('a "b c"++ (d-e)1.2, (f-- g)+ [h]', random), "steps": 5})}
    ),
    "NovelAI weights": lambda random: read_checked(
        {"Software": "NovelAI", "Comment": json.dumps({"prompt": mutated_text("{a} [b] 1.5::c:: (d) -2::e", random), "steps": 5})}
    ),
    "files": lambda random: read_file(mutated_file(random)),
}


def fuzz(reader: str, seeds: range) -> None:
    for seed in seeds:
        start = time.process_time()
        try:
            READERS[reader](random.Random(seed))
        except Exception as error:
            raise AssertionError(f"{reader} with seed {seed}: {error!r}") from error
        assert time.process_time() - start < 2, f"{reader} with seed {seed} is slow"


@pytest.mark.parametrize("reader", READERS)
def test_mutated_metadata_never_raises(reader):
    READERS[reader](random.Random(0))  # imports what it needs
    fuzz(reader, range(300))


@pytest.mark.long
@pytest.mark.parametrize("start", range(0, 10**5, 10**4))
@pytest.mark.parametrize("reader", READERS)
def test_much_mutated_metadata_never_raises(reader, start):
    fuzz(reader, range(start, start + 10**4))


def test_a_whole_number_too_large_for_a_float_is_listed():
    found = read_foreign({"parameters": json.dumps({"prompt": "x", "steps": 5, "sampler": "euler_cfg_pp", "cfg": 10**400})})
    assert found is not None
    assert {"guidance_scale", "sampler"} <= found.unused.keys()


SIZE = 1 << 16  # twice this and a line are still read


@pytest.mark.parametrize(
    "piece",
    ["a", " ", "\n", ",", ", ", "a: ", "a:\n", '"', '\\"', 'ab: "', "Steps: 1, ", "Steps: 1\n", "Steps: 1, Seed: 1, a: [", "-\n", "\n-a",
     "Size: ", "Negative prompt:", "ab: {", "a b-", ". Model: x", " -s 5", '" -a', "(", "a+ ", "(a)", "a'", "{", "1::"],
)  # fmt: skip
def test_long_repeated_texts_are_read_in_linear_time(piece):
    text = piece * (SIZE // len(piece))
    read_foreign({"parameters": "x"})
    for whole in (text, f"{text}\nSteps: 1, Seed: 2, Size: 8x8, Seed Mode: x, a: {text}", f'"{text}'):
        start = time.process_time()
        parse_infotext(whole)
        read_foreign({"Dream": whole, "parameters": whole})
        read_foreign({"invokeai_metadata": json.dumps({"positive_prompt": whole[:SIZE], "steps": 5})})
        read_foreign({"Software": "NovelAI", "Comment": json.dumps({"prompt": whole[:SIZE], "steps": 5})})
        assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "nodes",
    [
        {
            str(i): {"class_type": "KSampler", "inputs": {"positive": [str(i + 1), 0], "latent_image": [str(i + 1), 0], "seed": 1}}
            for i in range(5000)
        },
        {str(i): {"class_type": "Save", "inputs": {"images": ["5000", 0], "x": [str(i // 2 + 5000), 0]}} for i in range(5000)},
        {str(i): {"class_type": "Text", "inputs": {"text": [str(i + 1), 0]}} for i in range(5000)},
    ],
)
def test_large_graphs_are_read_in_linear_time(nodes):
    start = {"class_type": "KSampler", "inputs": {"positive": ["0", 0], "negative": ["0", 0], "steps": 5, "model": ["0", 0]}}
    text = json.dumps({"s": start, **nodes})
    begin = time.process_time()
    read_foreign({"prompt": text})
    assert time.process_time() - begin < 2


def test_a_text_that_doubles_in_every_node_is_not_read():
    nodes: dict[str, Any] = {"0": {"class_type": "String", "inputs": {"value": "x"}}}
    for i in range(1, 60):
        nodes[str(i)] = {"class_type": "Join", "inputs": {"text_a": [str(i - 1), 0], "text_b": [str(i - 1), 0], "delimiter": ""}}
    nodes["s"] = {"class_type": "KSampler", "inputs": {"positive": ["59", 0], "steps": 5, "model": ["0", 0]}}
    assert read_foreign({"prompt": json.dumps(nodes)}) is None


def subgraph(name: str, kinds: list[str]) -> dict[str, Any]:
    return {"id": name, "nodes": [{"id": i, "type": kind} for i, kind in enumerate(kinds)]}


@pytest.mark.parametrize("kind", ["s0", "s1"])
def test_subgraphs_that_hold_themselves_or_double_are_bounded(kind):
    doubling = [subgraph(f"s{i}", [f"s{i + 1}"] * 2) for i in range(1, 40)]
    workflow = {"nodes": [{"id": 1, "type": kind}], "definitions": {"subgraphs": [subgraph("s0", ["s0", "s0", "Text"]), *doubling]}}
    begin = time.process_time()
    assert read_foreign({"workflow": json.dumps(workflow)}) is None
    assert time.process_time() - begin < 2
