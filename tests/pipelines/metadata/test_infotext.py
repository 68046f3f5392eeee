"""The settings text of web UIs is read in any order and layout; extra values never become settings."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daguerre.pipelines.metadata.containers import decode_text
from daguerre.pipelines.metadata.infotext import parse_infotext
from daguerre.pipelines.metadata.readers import read_foreign
from daguerre.pipelines.metadata.write import Provenance, parameters
from daguerre.pipelines.request import Request, with_fields

SETTINGS = "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 31, Size: 512x768, Model: ferry_v2"
EXPECTED = {
    "prompt": "a harbour at dawn, fog",
    "negative_prompt": "people, text",
    "steps": 25,
    "sampler": "dpmpp_2m",
    "spacing": "karras",
    "guidance_scale": 6.5,
    "seed": 31,
    "width": 512,
    "height": 768,
}
HEAD = "a harbour at dawn, fog\nNegative prompt: people, text\n"


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        (HEAD + SETTINGS, {}),
        ((HEAD + SETTINGS).replace("\n", "\r\n"), {}),
        ((HEAD + SETTINGS).replace("\n", "\r"), {}),
        ("\ufeff" + HEAD + SETTINGS, {}),
        ("Prompt: " + HEAD + SETTINGS, {}),
        ("a harbour at dawn, fog. Negative prompt: people, text. " + SETTINGS, {}),
        ("a harbour at dawn, fog Negative prompt: people, text " + SETTINGS, {}),
        ("a harbour at dawn, fog\n Negative prompt: people, text\n " + SETTINGS, {}),
        (HEAD + SETTINGS.replace(", ", "\n"), {}),
        (HEAD + SETTINGS.replace(", ", ",\n"), {}),
        (HEAD + SETTINGS.replace(", ", ","), {}),
        (HEAD + ", ".join(reversed(SETTINGS.split(", "))), {}),
        (f"{SETTINGS}\nPrompt: a harbour at dawn, fog\nNegative prompt: people, text", {}),
        (f"{SETTINGS}\nPrompt: a harbour at dawn, fog\nNegative prompt: people, text".replace(", S", "\nS").replace(", C", "\nC"), {}),
        (
            f"{HEAD}{SETTINGS}, Version: v1.6.0\nTemplate: a {{harbour|lake}}, Seed: 5\nNegative Template: people,\ntext",
            {"Template": "a {harbour|lake}, Seed: 5", "Negative Template": "people, text"},
        ),
        (f"{HEAD}{SETTINGS}\nTime taken: 5.1 sec.", {"Time taken": "5.1 sec."}),
        (f"{HEAD}{SETTINGS}\nsaved by hand", {"text after the settings": "saved by hand"}),
        (
            f'{HEAD}Steps: 25, Wildcards: "a\nSeed: 9, Steps: 900, Size: 8x8", {SETTINGS}',
            {"Wildcards": "a Seed: 9, Steps: 900, Size: 8x8"},
        ),
        (f"{HEAD}{SETTINGS}, Steps: 26", {"Steps (repeated)": "26"}),
    ],
)
def test_every_layout_gives_the_same_request(text, unused):
    found = read_foreign({"parameters": text})
    assert found is not None
    assert (dict(found.request), found.model, dict(found.unused)) == (EXPECTED, "ferry_v2", unused)


def test_json_among_the_settings_is_one_value():
    resources = [
        {"type": "lora", "modelName": "Ink: lines", "modelVersionName": "v1, Steps: 900"},
        {"type": "checkpoint", "modelName": "Ferry, the model", "modelVersionName": "v2"},
    ]
    hashes = {"lora:ink, size: 9": '77"}, Seed: 8'}
    text = f"a\nHashes: {json.dumps(hashes)}, Steps: 25, Seed: 31, Size: 8x16, Civitai resources: {json.dumps(resources)}, Clip skip: 2"
    values = parse_infotext(text)
    assert values == {
        "prompt": "a",
        "Hashes": json.dumps(hashes),
        "Steps": "25",
        "Seed": "31",
        "Size": "8x16",
        "Civitai resources": json.dumps(resources),
        "Clip skip": "2",
        "Model": "Ferry, the model v2",
    }


def test_the_last_settings_count_when_a_prompt_holds_others():
    values = parse_infotext(f"old text\nSteps: 5, Sampler: Euler, Seed: 1, Size: 8x8\nnew text\n{SETTINGS}")
    assert values is not None
    assert (values["Steps"], values["prompt"]) == ("25", "old text\nSteps: 5, Sampler: Euler, Seed: 1, Size: 8x8\nnew text")


def test_dashes_begin_a_negative_prompt_in_draw_things_alone():
    draw_things = (
        "a harbour\n-people\nSteps: 10, Sampler: Euler A, Guidance Scale: 7.0, Seed: 1, Size: 64x64, Strength: 1.0, Seed Mode: Legacy"
    )
    found = read_foreign({"dc:description": draw_things})
    assert found is not None
    assert (found.software, found.request["prompt"], found.request["negative_prompt"]) == ("Draw Things", "a harbour", "people")
    values = parse_infotext(f"two things:\n- red\n- blue\n{SETTINGS}") or {}
    assert values["prompt"] == "two things:\n- red\n- blue"


@pytest.mark.parametrize(
    "text",
    ["a photo: 35mm, size: large, seed: of life", "Steps: many, Seed: of life, Size: large", "a: 1\nb: 2\nc: 3", "Steps: 4, Seed: 3"],
)
def test_a_prompt_with_colons_has_no_settings(text):
    assert parse_infotext(text) is None


# Characters that a prompt keeps when it is written and read: printable, and no line of settings or negative prompt.
PROMPTS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \n,:;.'\"[](){}<>-"), max_size=60).map(
    lambda text: text.replace("\r", "").strip()
)
REQUESTS = st.builds(
    Request,
    prompt=PROMPTS.filter(lambda text: "rompt:" not in text),
    negative_prompt=PROMPTS.filter(lambda text: "rompt:" not in text),
    steps=st.integers(1, 150),
    sampler=st.sampled_from(["euler", "euler_a", "dpmpp_2m", "unipc", "lms", "dpmpp_2m_sde_heun"]),
    spacing=st.sampled_from([None, "karras", "trailing", "sgm_uniform", "simple", "kl_optimal"]),
    guidance_scale=st.none() | st.integers(-4, 80).map(lambda number: number / 4),
    guidance_rescale=st.sampled_from([0.0, 0.5]),
    clip_skip=st.none() | st.integers(1, 4),
    seed=st.integers(0, 2**63 - 2),
)


@settings(max_examples=100, deadline=None)
@given(REQUESTS, PROMPTS.filter(bool))
def test_the_settings_text_of_daguerre_is_read_back(request, model):
    text = parameters(Provenance(request, 0, model, "0", "2", "cpu", "float32", "ab" * 32), (64, 32))
    found = read_foreign({"parameters": text})
    assert found is not None
    assert with_fields(Request(), found.request) == with_fields(request, {"width": 64, "height": 32})
    assert found.model == model


@settings(max_examples=100, deadline=None)
@given(
    st.permutations(
        [*SETTINGS.split(", "), "Version: v1.9", 'Lora hashes: "a: 1, Seed: 7"', 'Hashes: {"Steps: 3": "1, Seed: 4"}', "Clip skip: 2"]
    ),
    st.sampled_from([", ", ",", ",\n", "\n", "\r\n"]),
    st.sampled_from(["\n", "\r\n", "\n  "]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
)
def test_order_line_ends_and_encoding_do_not_matter(pairs, separator, line_end, encoding):
    text = line_end.join(["a harbour at dawn, fog", "Negative prompt: people, text", separator.join(pairs)])
    found = read_foreign({"parameters": decode_text(text.encode(encoding))})
    assert found is not None
    assert dict(found.request) == {**EXPECTED, "clip_skip": 2}
    assert dict(found.unused) == {"Lora hashes": "a: 1, Seed: 7", "Hashes": '{"Steps: 3": "1, Seed: 4"}'}
