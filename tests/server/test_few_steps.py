"""Fewer steps on the server: few-step files set what a caller leaves open, on every interface, and `fast` skips steps."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import daguerre
from daguerre.models.tiny_autoencoder import TinyAutoencoderConfig, TinyDecoder
from daguerre.pipelines.request import Request
from daguerre.server.jobs.budget import work_of
from tests.server.conftest import opened

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
LIGHTNING = {"sampler": "euler", "spacing": "trailing", "steps": 4, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def loras(studio):
    """Few-step LoRAs in the folder of the server: one whose name has the number of steps, and one without it."""
    weight = studio.workers[0].model_of("tiny").unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q").weight
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(1, weight.shape[1]), f"{LAYER}.lora_up.weight": torch.ones(len(weight), 1)}
    folder = studio.store.folder / "loras"
    folder.mkdir()
    for name in ("xl_lightning_4step", "xl_lightning"):
        save_file(tensors, folder / f"{name}.safetensors")


def settings(request):
    return {name: request[name] for name in LIGHTNING}


def test_a_few_step_file_sets_what_is_left_open(client, loras, run_job):
    prompt = {"prompt": "a red apple <lora:xl_lightning_4step:1>"}
    assert settings(client.post("/api/jobs", json={"request": prompt}).json()["request"]) == LIGHTNING
    plan = client.post("/api/plan", json={"request": {**prompt, "steps": 8}}).json()
    given = {name: value for name, value in LIGHTNING.items() if name != "steps"}
    assert plan["preset"] == {"name": "lightning-4", "file": "xl_lightning_4step.safetensors", "fields": given}
    assert (plan["steps"], plan["error"], plan["warnings"]) == (8, None, [])
    job = run_job({**prompt, "steps": 2, "sampler": "ddim", "guidance_scale": None})
    assert settings(job["request"]) == {"sampler": "ddim", "spacing": None, "steps": 2, "guidance_scale": None}
    assert client.post("/api/plan", json={"request": job["request"]}).json()["preset"] is None
    weightless = {"prompt": "a red apple <lora:xl_lightning_4step:0>"}
    assert client.post("/api/plan", json={"request": weightless}).json()["preset"] is None
    assert client.get("/api/samplers").json()["presets"]["lightning-4"] == LIGHTNING


def test_a_guidance_scale_that_the_file_does_not_support_is_warned_of(client, loras, run_job):
    request = {"prompt": "a red apple <lora:xl_lightning_4step:1>", "guidance_scale": 7.5}
    warning = "Files of the preset lightning-4 need 1, without guidance, and it is 7.5."
    assert run_job(request)["warnings"] == [warning]
    assert client.post("/api/plan", json={"request": request}).json()["warnings"] == [warning]


def test_a_file_that_leaves_its_preset_open_needs_a_choice(client, loras, run_job):
    request = {"prompt": "a red apple <lora:xl_lightning:1>"}
    reply = client.post("/api/jobs", json={"request": request})
    assert reply.status_code == 422
    assert "may be for lightning-2, lightning-4, lightning-8; choose one" in reply.json()["error"]["message"]
    assert run_job({**request, **LIGHTNING, "steps": 2})["state"] == "done"


def test_both_foreign_interfaces_use_the_preset(client, loras):
    prompt, size = "a red apple <lora:xl_lightning_4step:1>", {"width": 32, "height": 32}
    found = json.loads(client.post("/sdapi/v1/txt2img", json={"prompt": prompt, **size}).json()["info"])
    assert (found["steps"], found["cfg_scale"], found["sampler_name"]) == (4, 1.0, "Euler")
    found = json.loads(client.post("/sdapi/v1/txt2img", json={"prompt": prompt, **size, "steps": 3, "cfg_scale": 2}).json()["info"])
    assert (found["steps"], found["cfg_scale"]) == (3, 2.0)
    client.post("/v1/images/generations", json={"prompt": prompt}).raise_for_status()
    assert settings(client.get("/api/images").json()["images"][0]["request"]) == LIGHTNING
    client.post("/v1/images/generations", json={"prompt": prompt, "extra": 1, "num_inference_steps": 2}).raise_for_status()
    assert settings(client.get("/api/images").json()["images"][0]["request"]) == {**LIGHTNING, "steps": 2}


def test_fast_is_a_setting_of_every_interface(client, studio, run_job):
    request = {"prompt": "a red apple", "steps": 10, "seed": 3, "guidance_scale": 2.0}
    expected = np.asarray(daguerre.generate(studio.workers[0].model_of("tiny"), **request, fast=True)[0].image)
    job = run_job({**request, "fast": True})
    assert np.array_equal(np.asarray(opened(client.get(f"/api/images/{job['images'][0]}").content)), expected)
    web_ui = {"prompt": "a red apple", "steps": 10, "seed": 3, "cfg_scale": 2.0, "fast": True}
    assert np.array_equal(np.asarray(opened(client.post("/sdapi/v1/txt2img", json=web_ui).json()["images"][0])), expected)
    openai = {"prompt": "a red apple", "num_inference_steps": 10, "seed": 3, "guidance_scale": 2.0, "fast": True}
    assert np.array_equal(np.asarray(opened(client.post("/v1/images/generations", json=openai).json()["data"][0]["b64_json"])), expected)
    assert work_of(Request(fast=True, steps=20), None) < 0.6 * work_of(Request(steps=20), None)


@pytest.mark.parametrize(("changes", "message"), [({"steps": 5}, "10 steps or more"), ({"sampler": "euler_a"}, "without fresh noise")])
def test_settings_that_exclude_each_other_are_refused_before_the_run(client, changes, message):
    reply = client.post("/api/jobs", json={"request": {"steps": 20, "fast": True, **changes}})
    assert reply.status_code == 422
    assert message in reply.json()["error"]["message"]


def test_previews_come_from_the_tiny_decoder_of_a_model_that_has_one(client, studio, run_job):
    tiny = studio.workers[0].model_of("tiny")
    levels = tiny.autoencoder.downsample_factor.bit_length() - 1
    decoder = TinyDecoder(TinyAutoencoderConfig(tiny.latent_channels, width=8, blocks=1, levels=levels))
    daguerre.save(replace(tiny, preview_decoder=decoder), studio.store.folder / "models" / "quick")
    sizes = {}
    for model in ("tiny", "quick"):
        job = run_job({"prompt": "a red apple", "steps": 1}, model=model)
        (preview,) = [json.loads(event.data)["preview"] for event in studio.events.since(0, job["id"]) if event.kind == "step"]
        sizes[model] = opened(base64.b64decode(preview.partition(",")[2])).size
    assert sizes == {"tiny": (8, 8), "quick": (32, 32)}
