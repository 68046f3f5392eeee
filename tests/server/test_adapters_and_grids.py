"""LoRAs and embeddings by name, never by path; grids that reopen from their file."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import daguerre
from daguerre.adapters import load_controlnet, load_lora, with_adapters
from daguerre.models.controlnet import ControlNetConfig, ControlNetModel
from daguerre.pipelines.images.preprocessors import PREPROCESSORS, canny
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.server.storage.store import Store
from tests.server.conftest import base64_png, finished, opened, sample_image

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
    listing = client.get("/api/models/adapters").json()
    assert (listing["loras"][0]["name"], listing["controlnets"]) == ("ink", [])
    assert listing["preprocessors"] == list(PREPROCESSORS)
    (listed,) = client.get("/sdapi/v1/loras").json()
    assert (listed["name"], listed["path"]) == ("ink", "ink.safetensors")


def test_a_caller_cannot_name_a_file(client, lora, tmp_path):
    for value in (
        {"kind": "lora", "name": str(lora)},
        {"kind": "lora", "name": "../loras/ink"},
        {"kind": "lora", "name": "none", "path": str(lora)},
        {"kind": "embedding", "name": "ink"},
        {"kind": "controlnet", "name": "ink"},
        {"kind": "ip-adapter", "name": "ink"},
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


@pytest.fixture(scope="module")
def control(studio):
    """A ControlNet in the folder of the server, "edges", in the layout of diffusers."""
    torch.manual_seed(0)
    model = studio.workers[0].model_of("tiny")
    network = ControlNetModel(ControlNetConfig(replace(model.unet.config, in_channels=6), (4, 8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = studio.store.folder / "controlnets" / "edges"
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text("{}")
    return load_controlnet(folder, model).scaled(0.7, end=0.7)


def test_a_controlnet_runs_on_a_map_of_the_server(client, studio, control, run_job):
    source = client.post("/api/inputs", json={"image": base64_png(sample_image((64, 64)))}).json()
    found = client.post("/api/maps", json={"id": source["id"], "preprocessor": "canny"}).json()
    request = {"prompt": "a red apple", "steps": 3, "seed": 1}
    unit = {"kind": "controlnet", "name": "edges", "scale": 0.7, "end": 0.7}
    controlled = {**request, "adapters": [unit], "control_images": [{"id": found["id"]}]}
    job = run_job(controlled)
    assert job["state"] == "done", job
    edges = canny(sample_image((64, 64)))
    model = with_adapters(studio.workers[0].model_of("tiny"), [control])
    expected = np.asarray(daguerre.generate(model, **request, control_images=[edges])[0].image)
    assert np.array_equal(pixels(client, job), expected)
    assert not np.array_equal(pixels(client, run_job(request)), expected)

    # The image says what made it, gives it again, and is read back when dropped.
    data = client.get(f"/api/images/{job['images'][0]}").content
    assert str(studio.store.folder).encode() not in data
    report = client.post("/api/drop", json={"image": base64.b64encode(data).decode()}).json()
    assert (report["exact"], report["missing_inputs"]) == (True, [])
    assert report["request"]["control_images"] == [{"id": found["id"], "sha256": found["sha256"]}]
    assert client.get(f"/api/images/{run_job(report['request'])['images'][0]}").content == data

    plan = client.post("/api/plan", json={"request": controlled}).json()
    assert plan["error"] is None
    adapter = next(node for node in plan["nodes"] if node["kind"] == "adapter")
    assert (adapter["label"], adapter["detail"]) == ("ControlNet", "edges ×0.7, 0% to 70%")
    assert [adapter["id"], "denoiser"] in plan["edges"]
    assert plan["sigmas"]


def test_controlnets_of_the_web_ui_run(client, control, run_job):
    assert client.get("/controlnet/model_list").json() == {"model_list": ["edges"]}
    image = base64_png(sample_image((32, 32)))
    unit = {"enabled": True, "image": image, "module": "canny", "model": "Edges [0123abcd]", "weight": 0.7, "guidance_end": 0.7}
    call = {"prompt": "a red apple", "seed": 1, "steps": 3, "width": 32, "height": 32}
    answer = client.post("/sdapi/v1/txt2img", json={**call, "alwayson_scripts": {"controlnet": {"args": [unit]}}}).json()
    plain = client.post("/sdapi/v1/txt2img", json=call).json()
    info = json.loads(answer["info"])
    assert info["warnings"] == []
    assert info["extra_generation_params"]["ControlNet 0"].startswith("Module: canny, Model: edges, Weight: 0.7")
    assert answer["images"] != plain["images"]
    found = client.post("/controlnet/detect", json={"controlnet_module": "canny", "controlnet_images": [image]}).json()
    assert np.array_equal(np.asarray(opened(found["images"][0])), np.asarray(canny(sample_image((32, 32)))))
    detected = {**unit, "image": found["images"][0], "module": "none"}
    same = client.post("/sdapi/v1/txt2img", json={**call, "alwayson_scripts": {"controlnet": {"args": [detected]}}}).json()
    assert opened(same["images"][0]).tobytes() == opened(answer["images"][0]).tobytes()
    body = {**call, "init_images": [image], "alwayson_scripts": {"ControlNet": {"args": [{**unit, "image": ""}]}}}
    assert client.post("/sdapi/v1/img2img", json=body).status_code == 200  # the unit takes the image of img2img
    for change, status, text in (
        ({"model": "edge"}, 404, "Did you mean 'edges'?"),
        ({"module": "depth"}, 422, "no preprocessor 'depth'"),
        ({"image": ""}, 422, "no image"),
        ({"weight": "much"}, 422, "scale of 'edges'"),
        ({"guidance_start": 0.8}, 422, "applies from 0.8"),
    ):
        scripts = {"controlnet": {"args": [{**unit, **change}]}}
        reply = client.post("/sdapi/v1/txt2img", json={**call, "alwayson_scripts": scripts})
        assert (reply.status_code, text in reply.json()["detail"]) == (status, True), reply.text
    unused = [{**unit, "enabled": False}, {**unit, "model": "None"}]
    idle = client.post("/sdapi/v1/txt2img", json={**call, "alwayson_scripts": {"controlnet": {"args": unused}}}).json()
    assert json.loads(idle["info"])["warnings"] == ["A ControlNet unit without a model was ignored"]


def test_maps_and_controlnets_come_in_pairs(client, control):
    unit = {"kind": "controlnet", "name": "edges"}
    for request in ({"adapters": [unit]}, {"control_images": [{"id": "0" * 32}]}, {"adapters": [unit], "control_images": 3}):
        reply = client.post("/api/jobs", json={"request": request})
        assert (reply.status_code, reply.json()["error"]["param"]) == (422, "control_images"), reply.text
    assert client.post("/api/maps", json={"id": "0" * 32, "preprocessor": "canny"}).status_code == 404
    source = client.post("/api/inputs", json={"image": base64_png(sample_image())}).json()["id"]
    reply = client.post("/api/maps", json={"id": source, "preprocessor": "cany"})
    assert (reply.status_code, "Did you mean 'canny'" in reply.text) == (422, True)


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
