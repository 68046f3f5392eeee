"""Metadata of other programs is read as a request; unused values are listed, and malformed files do no harm."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from daguerre.errors import DaguerreError
from daguerre.pipelines.images.output import GeneratedImage
from daguerre.pipelines.metadata.readers import ForeignMetadata, parse_infotext, read_foreign
from daguerre.pipelines.metadata.write import Provenance, parameters, read_image_texts, read_provenance
from daguerre.pipelines.request import Request, with_fields

WEBUI = (
    "a (red:1.3) apple,\nshiny\nNegative prompt: blurry,\nlow quality\n"
    "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 512x768, Model hash: 6ce0161689, "
    'Model: v1-5-pruned, Clip skip: 2, Lora hashes: "detail: 8b1f, other: 99aa", Version: v1.10.1'
)
COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 25,
            "cfg": 8,
            "sampler_name": "dpmpp_2m_sde_gpu",
            "scheduler": "karras",
            "denoise": 1,
            "model": ["10", 0],
            "positive": ["12", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dream.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 384, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "rain", "clip": ["10", 1]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "ink.safetensors", "strength_model": 0.8, "model": ["4", 0], "clip": ["4", 1]},
    },
    "12": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["6", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}
WORKFLOW = {
    "nodes": [
        {"id": 3, "type": "KSampler", "inputs": [{"name": "positive", "link": 4}, {"name": "negative", "link": 6},
         {"name": "latent_image", "link": 2}],
         "widgets_values": [5, "randomize", 25, 8, "euler", "normal", 1]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [640, 384, 1]},
        {"id": 6, "type": "CLIPTextEncode", "inputs": [], "widgets_values": ["a fox"]},
        {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["rain"]},
    ],
    "links": [[2, 5, 0, 3, 3, "LATENT"], [4, 6, 0, 3, 1, "CONDITIONING"], [6, 7, 0, 3, 2, "CONDITIONING"]],
}  # fmt: skip
INVOKE = {
    "positive_prompt": "a fox",
    "negative_prompt": "rain",
    "seed": 5,
    "steps": 25,
    "cfg_scale": 8.0,
    "scheduler": "dpmpp_2m_k",
    "width": 640,
    "height": 384,
    "model": {"name": "dream", "hash": "blake3:12", "base": "sd-1"},
    "loras": [{"name": "ink", "weight": 0.8}],
    "app_version": "5.0",
}
NOVELAI = {
    "Title": "AI generated image",
    "Software": "NovelAI",
    "Description": "a fox",
    "Comment": json.dumps(
        {"steps": 28, "height": 832, "width": 640, "scale": 5.0, "seed": 5, "sampler": "k_euler_ancestral", "noise_schedule": "karras",
         "uc": "rain", "cfg_rescale": 0.2, "signed_hash": "x"}
    ),
}  # fmt: skip
DIFFUSERS = {
    "prompt": "a fox",
    "negative_prompt": "rain",
    "num_inference_steps": 30,
    "guidance_scale": 7.5,
    "seed": 5,
    "scheduler": "EulerAncestralDiscreteScheduler",
    "height": 384,
    "width": 640,
}


KARRAS = {"sampler": "dpmpp_2m_sde", "spacing": "karras"}
SWARM = {"prompt": "a fox", "negativeprompt": "rain", "seed": 5, "steps": 25, "cfgscale": 8.0, "width": 640, "height": 384,
         "comfyuisampler": "dpmpp_2m_sde", "comfyuischeduler": "karras"}  # fmt: skip
DRAW_THINGS = {"c": "a fox", "uc": "rain", "sampler": "DPM++ 2M Karras", "scale": 8, "seed": 5, "seed_mode": "Scale Alike",
               "size": "640x384", "steps": 25, "lora": [], "v2": {"steps": 25}}  # fmt: skip
RUINED_FOOOCUS = {"Prompt": "a fox", "Negative": "rain", "steps": 25, "cfg": 8, "width": 640, "height": 384, "seed": 5, "loras": "",
                  "sampler_name": "dpmpp_2m_sde_gpu", "scheduler": "karras", "denoise": None, "software": "RuinedFooocus"}  # fmt: skip
EASY_DIFFUSION = {"Prompt": "a fox", "Seed": "5", "Negative Prompt": "rain", "Stable Diffusion model": "ferry", "Clip Skip": "False",
                  "VAE model": "", "Sampler": "euler_a", "Width": "640", "Height": "384", "Steps": "25", "Guidance Scale": "8"}  # fmt: skip
EASY_DIFFUSION_OLD = {"prompt": "a fox", "seed": "5", "negative_prompt": "rain", "use_stable_diffusion_model": "ferry", "width": "640",
                      "height": "384", "num_inference_steps": "25", "guidance_scale": "8", "sampler_name": "euler_a"}  # fmt: skip
INVOKE_2 = {"model": "stable diffusion", "model_weights": "ferry-1.4", "image": {
    "prompt": [{"prompt": "a fox [rain]", "weight": 1}], "steps": 25, "cfg_scale": 8, "height": 384, "width": 640, "seed": 5,
    "sampler": "k_dpmpp_2_a"}}  # fmt: skip


def read(texts: dict[str, Any]) -> ForeignMetadata:
    found = read_foreign({name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items()})
    assert found is not None
    with_fields(Request(), found.request)  # every value is one that a request takes
    return found


def test_reads_the_infotext_of_automatic1111():
    found = read({"parameters": WEBUI})
    assert dict(found.request) == {
        "prompt": "a (red:1.3) apple,\nshiny",
        "negative_prompt": "blurry,\nlow quality",
        "steps": 28,
        "sampler": "dpmpp_2m",
        "spacing": "karras",
        "guidance_scale": 6.5,
        "clip_skip": 2,
        "seed": 42,
        "width": 512,
        "height": 768,
    }
    assert found.model == "v1-5-pruned"
    assert dict(found.unused) == {"Model hash": "6ce0161689", "Lora hashes": "detail: 8b1f, other: 99aa"}
    assert "--size 512x768 --negative-prompt 'blurry,\nlow quality' --steps 28" in found.command()


def test_reads_the_infotext_of_daguerre():
    request = Request(prompt="a: b, c", negative_prompt="x", steps=7, sampler="euler_a", spacing="karras", guidance_scale=3.5, seed=9)
    origin = Provenance(request, 0, "a, b", "0", "2", "cpu", "float32", "ab" * 32)
    found = read({"parameters": parameters(origin, (64, 32))})
    assert with_fields(Request(), found.request) == with_fields(request, {"width": 64, "height": 32})
    assert found.model == "a, b"


@pytest.mark.parametrize(
    ("texts", "tool", "differs", "unused"),
    [
        ({"prompt": COMFY}, "ComfyUI", {"sampler": "dpmpp_2m_sde", "spacing": "karras"}, {"LoraLoader lora_name": "ink.safetensors"}),
        ({"workflow": WORKFLOW}, "ComfyUI", {"sampler": "euler", "spacing": "linspace"}, {}),
        ({"invokeai_metadata": INVOKE}, "InvokeAI", {"sampler": "dpmpp_2m_karras"}, {"loras": '[{"name": "ink", "weight": 0.8}]'}),
        (
            {
                "sd-metadata": {
                    "model_weights": "dream",
                    "image": {**INVOKE, "prompt": [{"prompt": "a fox", "weight": 1}], "sampler": "k_lms"},
                }
            },
            "InvokeAI",
            {"sampler": "lms"},
            {},
        ),
        (
            NOVELAI,
            "NovelAI",
            {"steps": 28, "guidance_scale": 5.0, "sampler": "euler_a", "spacing": "karras", "height": 832, "guidance_rescale": 0.2},
            {"signed_hash": "x"},
        ),
        ({"parameters": DIFFUSERS}, "a program that writes JSON", {"steps": 30, "guidance_scale": 7.5, "sampler": "euler_a"}, {}),
        (
            {"parameters": {"sui_image_params": {**DIFFUSERS, "cfgscale": 8, "guidance_scale": 8, "steps": 25, "num_inference_steps": 25}}},
            "SwarmUI",
            {"sampler": "euler_a"},
            {},
        ),
        ({"parameters": {"sui_image_params": SWARM, "sui_models": ["x"]}}, "SwarmUI", KARRAS, {"sui_models": '["x"]'}),
        ({"anything": DRAW_THINGS}, "Draw Things", {"sampler": "DPM++ 2M Karras"}, {"seed_mode": "Scale Alike"}),
        ({"parameters": RUINED_FOOOCUS}, "RuinedFooocus", KARRAS, {}),
        (EASY_DIFFUSION, "Easy Diffusion or a similar program", {"sampler": "euler_a"}, {}),
        (EASY_DIFFUSION_OLD, "Easy Diffusion or a similar program", {"sampler": "euler_a"}, {}),
        ({"Dream": '"a fox [rain]" -s 25 -S 5 -W 640 -H 384 -C 8 -A k_euler_a -G 0.8'}, "InvokeAI", {"sampler": "euler_a"}, {"-G": "0.8"}),
        ({"Dream": "a fox [rain] -s25 -S5 -W640 -H384 -C8.0 -mk_lms --seamless"}, "InvokeAI", {"sampler": "lms"}, {"seamless": "on"}),
        ({"sd-metadata": INVOKE_2}, "InvokeAI", {"sampler": "dpmpp_2s_a"}, {"model family": "stable diffusion"}),
        ({"parameters": "None", "UserComment": {"prompt": COMFY}}, "ComfyUI", {"sampler": "dpmpp_2m_sde", "spacing": "karras"}, {}),
    ],
)
def test_reads_the_metadata_of_other_programs(texts, tool, differs, unused):
    found = read(texts)
    expected = {
        "prompt": "a fox",
        "negative_prompt": "rain",
        "seed": 5,
        "steps": 25,
        "guidance_scale": 8.0,
        "width": 640,
        "height": 384,
    } | differs
    request = dict(found.request)
    if "spacing" not in differs:
        request.pop("spacing", None)
    assert (found.software, request) == (tool, expected)
    assert unused.items() <= found.unused.items()


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("DPM++ 2M", "Automatic", {"sampler": "dpmpp_2m", "spacing": "karras"}),
        ("DPM++ 2M SDE", "Automatic", {"sampler": "dpmpp_2m_sde", "spacing": "exponential"}),
        ("Euler a", "Automatic", {"sampler": "euler_a", "spacing": "linspace"}),
        ("DDIM", "Automatic", {"sampler": "DDIM"}),
        ("Euler", "Simple", {"sampler": "euler", "spacing": "simple"}),
        ("Euler", "SGM Uniform", {"sampler": "euler", "spacing": "sgm_uniform"}),
        ("Euler", "KL Optimal", {"sampler": "euler", "spacing": "kl_optimal"}),
        ("Euler", "Turbo", {"sampler": "euler"}),
        ("DDIM CFG++", "Automatic", {"sampler": "ddim", "cfg_plus_plus": True, "guidance_scale": 0.56}),
        ("DPM++ 2M CFG++", "Karras", {"spacing": "karras"}),
        ("DPM++ 2M v2", "Karras", {"spacing": "karras"}),
        ("UniPCMultistepScheduler", "", {"sampler": "unipc"}),
        ("DEISMultistepScheduler", "", {"sampler": "deis"}),
        ("KDPM2AncestralDiscreteScheduler", "", {"sampler": "dpm2_a"}),
    ],
)
def test_reads_sampler_and_schedule_names(sampler, schedule, expected):
    found = read({"parameters": f"x\nSteps: 9, Sampler: {sampler}, Schedule type: {schedule}, CFG scale: 7, Seed: 1, Size: 64x64"})
    request = {name: found.request[name] for name in ("sampler", "spacing", "cfg_plus_plus") if name in found.request}
    assert found.request["guidance_scale"] == expected.pop("guidance_scale", 7)
    assert request == expected
    assert ("sampler" in found.unused) == ("sampler" not in expected)
    assert ("spacing" in found.unused) == (schedule == "Turbo")


@pytest.mark.parametrize("name", ["invokeai_metadata", "parameters"])
def test_clip_skip_of_programs_that_count_skipped_layers(name):
    assert read({name: {**(INVOKE if name != "parameters" else DIFFUSERS), "clip_skip": 1}}).request["clip_skip"] == 2
    assert read({"parameters": {"prompt": "x", "steps": 5, "clip_skip": 2}}).request["clip_skip"] == 2


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red++ fox", "a (red:1.21) fox"),
        ("a (red fox)--, rain+", "a (red fox:0.81), (rain:1.1)"),
        ("(a (red)1.3 fox)0.8", "(a (red:1.3) fox:0.8)"),
        ('a "red fox"+ in C++17, a well-known sci-fi- film', "a (red fox:1.1) in C++17, a well-known (sci-fi:0.9) film"),
        (r"a (plain) fox \(b\) - (open", r"a plain fox \(b\) - \(open"),
        ("a fox) " + "b" + "+" * 10**4, r"a fox\) (b:13780.6123)"),
    ],
)
def test_weights_of_invokeai_become_weights_of_a_request(prompt, expected):
    assert read({"invokeai_metadata": {**INVOKE, "positive_prompt": prompt}}).request["prompt"] == expected
    assert read({"sd-metadata": {"model_weights": "x", "image": {"prompt": prompt, "steps": 5}}}).request["prompt"] == expected


def test_brackets_of_invokeai_3_are_text_and_functions_are_listed():
    assert read({"invokeai_metadata": {**INVOKE, "positive_prompt": "a [fox]"}}).request["prompt"] == r"a \[fox\]"
    found = read({"invokeai_metadata": {**INVOKE, "positive_prompt": '("a", "b").blend(1, 1)'}})
    assert found.unused["positive_prompt function"] == "blend() of InvokeAI's prompt syntax"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{{red}} fox, [rain]", "((red:1.05):1.05) fox, (rain:0.9524)"),
        ("1.5::red fox::, 0.5::rain:: at 3:30", "(red fox:1.5), (rain:0.5) at 3:30"),
        ("a 2::red, -1::rain", "a (red, :2)(rain:-1)"),
        ("a fox (red) {}", r"a fox \(red\) "),
        ("a {red] fox", "a (red fox:1.05)"),
    ],
)
def test_weights_of_novelai_become_weights_of_a_request(prompt, expected):
    settings = {"steps": 5, "seed": 5, "uc": prompt}
    found = read({"Software": "NovelAI", "Description": prompt, "Comment": settings})
    assert (found.request["prompt"], found.request["negative_prompt"]) == (expected, expected)


def test_names_that_only_one_program_uses():
    swarm = read({"parameters": {"sui_image_params": {**SWARM, "clipstopatlayer": -2}}})
    assert swarm.request["clip_skip"] == 2
    assert read({"invokeai_metadata": {**INVOKE, "cfg_rescale_multiplier": 0.3}}).request["guidance_rescale"] == 0.3
    bee = read({"Comment": {"prompt": "x", "seed": 5, "ddim_steps": 25, "scale": 7.5, "img_width": 512, "img_height": 768}})
    assert (bee.request["steps"], bee.request["width"], bee.request["height"]) == (25, 512, 768)


def test_invalid_values_are_listed_as_unused():
    text = "a fox\nSteps: 99999999999, Sampler: Restart, CFG scale: nan, Seed: -1, Size: 99999x64, Eta: 7"
    found = read({"parameters": text})
    assert dict(found.request) == {"prompt": "a fox"}
    assert set(found.unused) == {"steps", "sampler", "guidance_scale", "seed", "width", "height", "eta"}  # one side alone is no size


@pytest.mark.parametrize(
    "text", ["", "a red apple", "a: b, c: d\nNegative prompt: x", "{", "[" * 10**5, '{"a":' * 10**5, '{"prompt": 5}', "{}"]
)
def test_text_without_a_request_gives_none(text):
    assert read_foreign(dict.fromkeys(("parameters", "prompt", "workflow", "invokeai_metadata", "sd-metadata", "Comment"), text)) is None


KEYS = st.sampled_from([*COMFY["3"]["inputs"], "class_type", "inputs", "nodes", "links", "image"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON_VALUES, st.sampled_from(["prompt", "workflow", "invokeai_metadata", "sd-metadata", "parameters"]))
def test_arbitrary_json_never_raises(value, name):
    read_foreign({name: json.dumps(value)})
    sampler = {"class_type": "KSampler", "inputs": {"positive": ["1", 0], "model": ["1", 0], "x": value}}
    read_foreign({"prompt": json.dumps({"1": sampler, "2": value})})


def test_a_last_line_with_fewer_than_three_pairs_belongs_to_the_prompt():
    assert parse_infotext("a fox\nin rain: heavy, wind: light") is None
    assert (parse_infotext("Steps: 1, Seed: 2, Size: 8x8") or {})["prompt"] == ""


# Where the texts lie in files


def save_with_comment(path: Path, comment: bytes) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "x"  # Pillow leaves the block out of a PNG where there is a comment alone
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + WEBUI.encode("utf-16-be"),
        b"UNICODE\0" + WEBUI.encode("utf-16-le"),
        b"ASCII\0\0\0" + WEBUI.encode(),
        bytes(8) + WEBUI.encode(),
    ],
)
def test_reads_exif_comments_in_every_encoding(tmp_path: Path, name: str, comment: bytes):
    assert read_image_texts(save_with_comment(tmp_path / name, comment))[1]["parameters"] == WEBUI


def test_reads_graphs_from_exif_texts_and_xmp(tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "prompt:" + json.dumps(COMFY)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read(read_image_texts(tmp_path / "a.webp")[1]).request["prompt"] == "a fox"
    told = json.dumps(DIFFUSERS).replace('"', "&quot;")
    xmp = f'<x:xmpmeta><exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{told}</rdf:li></rdf:Alt></exif:UserComment></x:xmpmeta>'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=xmp.encode())
    assert read(read_image_texts(tmp_path / "a.jpg")[1]).request["prompt"] == "a fox"


def test_a_camera_description_is_not_a_request(tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "OLYMPUS DIGITAL CAMERA"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image_texts(tmp_path / "a.jpg")[1] == {"ImageDescription": "OLYMPUS DIGITAL CAMERA"}


# Hostile files


def test_an_image_of_extreme_size_is_refused_before_decoding(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(DaguerreError, match=r"huge\.png'.*(60000×60000|exceeds limit)"):
        read_image_texts(tmp_path / "huge.png")
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_MEMORY + 1)))
    small = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", small) + bomb + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    )
    with pytest.raises(DaguerreError, match=r"Cannot read the image .*bomb\.png"):
        read_image_texts(tmp_path / "bomb.png")


ORIGIN = Provenance(Request(prompt="a red apple", seed=7), 0, "tiny", "0.1.0", "2.13.0", "cpu", "float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"picture": 1},
        {"picture": -1},
        {"picture": "0"},
        {"picture": True},
        {"model": 5},
        {"dtype": "load"},
        {"model_path": ["/"]},
        {"request": None},
        {"request": {"steps": "many"}},
        {"request": {"seed": -5}},
        {"request": {"task": {"name": "none"}}},
        {"more": 1},
    ],
)
def test_an_edited_request_is_refused(tmp_path: Path, changes):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("daguerre", json.dumps({**ORIGIN.to_json(), **changes}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(DaguerreError):
        read_provenance(tmp_path / "a.png")


def test_metadata_too_long_for_jpeg_is_refused_and_fits_into_png(tmp_path: Path):
    origin = Provenance(Request(prompt="a red apple " * 6000), 0, "tiny", "0.1.0", "2.13.0", "cpu", "float32")
    picture = GeneratedImage(Image.new("RGB", (8, 8)), origin)
    with pytest.raises(DaguerreError, match=r"save the image as \.png or \.webp"):
        picture.save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
    for suffix in (".png", ".webp"):
        assert read_provenance(picture.save(tmp_path / f"a{suffix}"))[1] == origin
