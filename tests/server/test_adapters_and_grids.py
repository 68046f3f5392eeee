"""LoRAs and embeddings by name, never by path; grids that reopen from their file."""

import base64

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import daguerre
from daguerre.adapters import load_lora, with_adapters
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.server.storage.store import Store
from tests.server.conftest import finished, opened

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def lora(studio):
    """A LoRA file in the folder of the server, "ink"."""
    weight = studio.workers[0].model_of("tiny").unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q").weight
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(2, weight.shape[1], generator=generator),
        f"{LAYER}.lora_up.weight": torch.randn(len(weight), 2, generator=generator),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    path = studio.store.folder / "loras" / "ink.safetensors"
    path.parent.mkdir()
    save_file(tensors, path)
    return path


def pixels(client, job):
    return np.asarray(opened(client.get(f"/api/images/{job['images'][0]}").content))


def test_a_lora_is_attached_by_name_or_tag(client, studio, lora, run_job):
    request = {"prompt": "a red apple", "steps": 3, "seed": 1}
    plain = run_job(request)
    named = run_job({**request, "adapters": [{"kind": "lora", "name": "ink", "scale": 0.5}]})
    tagged = run_job({**request, "prompt": "a red apple<lora:ink:0.5>"})
    model = with_adapters(studio.workers[0].model_of("tiny"), [load_lora(lora).scaled(0.5)])
    expected = np.asarray(daguerre.generate(model, **request)[0].image)
    assert np.array_equal(pixels(client, named), expected)
    assert np.array_equal(pixels(client, tagged), expected)
    assert not np.array_equal(pixels(client, plain), expected)
    assert np.array_equal(pixels(client, run_job(request)), pixels(client, plain))  # the model itself is unchanged
    info = client.get(f"/api/images/{tagged['images'][0]}/info").json()
    assert [(each["name"], each["path"]) for each in info["request"]["adapters"]] == [("ink", None)]
    assert np.array_equal(pixels(client, run_job(info["request"])), expected)
    assert read_provenance(studio.store.path("images", tagged["images"][0]))[1].request.adapters[0].path is None


def test_adapters_are_listed_with_their_family(client, lora):
    assert client.get("/api/models/adapters").json()["loras"][0]["name"] == "ink"
    (listed,) = client.get("/sdapi/v1/loras").json()
    assert (listed["name"], listed["path"]) == ("ink", "ink.safetensors")


def test_a_caller_cannot_name_a_file(client, lora, tmp_path):
    for value in (
        {"kind": "lora", "name": str(lora)},
        {"kind": "lora", "name": "../loras/ink"},
        {"kind": "lora", "name": "none", "path": str(lora)},
        {"kind": "embedding", "name": "ink"},
        {"kind": "controlnet", "name": "ink"},
        {"kind": "lora"},
        "ink",
    ):
        reply = client.post("/api/jobs", json={"request": {"adapters": [value]}})
        assert reply.status_code in (404, 422), value
    assert client.post("/api/jobs", json={"request": {"adapters": 3}}).status_code == 422
    image = {"sha256": "0" * 64, "path": str(lora)}
    assert client.post("/api/jobs", json={"request": {"control_images": [image]}}).status_code == 422
    assert client.post("/api/jobs", json={"request": {"adapters": [{"kind": "lora", "name": "ink", "scale": "much"}]}}).status_code == 422


def test_a_tag_without_its_lora_is_warned_of(client, lora, run_job):
    job = run_job({"prompt": "x <lora:inkk:1>", "steps": 1})
    assert job["state"] == "done"
    assert job["warnings"] == ["The LoRA 'inkk' of the prompt is not here and was ignored. Did you mean 'ink'?"]


def test_a_grid_reopens_from_its_file(client, studio, tmp_path):
    x, y = {"field": "steps", "values": [1, 2, 3]}, {"field": "sampler", "values": ["euler", "dpmpp_2m"]}
    reply = client.post("/api/grids", json={"request": {"prompt": "a red apple", "seed": 4}, "x": x, "y": y})
    assert reply.status_code == 202, reply.text
    job = finished(client, reply.json()["id"])
    assert (job["state"], job["kind"], len(job["images"])) == ("done", "grid", 1)
    assert job["progress"]["fraction"] in (0, 1)
    data = client.get(f"/api/images/{job['images'][0]}").content
    assert str(studio.store.folder).encode() not in data
    report = client.post("/api/drop", json={"image": base64.b64encode(data).decode()}).json()
    assert (report["grid"]["x"], report["grid"]["y"]) == (x, y)
    assert (report["grid"]["request"]["prompt"], report["grid"]["request"]["seed"]) == ("a red apple", 4)
    assert (report["software"], report["model"]) == ("daguerre", "tiny")
    assert client.get("/api/images", params={"search": "apple"}).json()["images"][0]["id"] == job["images"][0]

    copy = tmp_path / "images" / f"{job['images'][0]}.png"
    copy.parent.mkdir()
    copy.write_bytes(data)
    store = Store(tmp_path)  # a gallery made again from its files has the grid, too
    assert [image.id for image in store.images()[0]] == job["images"]
    store.close()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"field": "num_images", "values": [1, 2]}, "num_images"),
        ({"field": "steps", "values": []}, "values"),
        ({"field": "steps", "values": [0]}, "steps is 0"),
        ({"field": "sampler", "values": ["eulr"]}, "eulr"),
        ({"field": "seed", "values": list(range(65))}, "values"),
    ],
)
def test_wrong_grids_are_typed_errors(client, x, message):
    reply = client.post("/api/grids", json={"x": x})
    assert reply.status_code == 422
    assert message in reply.json()["error"]["message"]
