"""The `webuiapi` client, unmodified, and the requests of other clients of the Stable Diffusion web UI."""

import json
import threading
import time

import httpx2
import numpy as np
import pytest
import webuiapi
from PIL import Image

import daguerre
from daguerre.diffusion import SAMPLERS, SPACINGS, parse_sampler_name
from daguerre.pipelines.tasks import Inpaint
from daguerre.server.sdapi.requests import SdapiBody, requested_sampler, sampler_names, script_is_active
from tests.server.conftest import base64_png, opened, png, sample_image

SMALL = {"width": 32, "height": 32, "steps": 3}


@pytest.fixture(scope="module")
def api(address) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", steps=3)


@pytest.fixture(scope="module")
def post(address):
    def post_(path: str, **values):
        return httpx2.post(f"{address}/sdapi/v1/{path}", json=values, timeout=60)

    return post_


def test_txt2img_gives_the_image_of_the_library(api, studio):
    result = api.txt2img(
        prompt="a red apple", negative_prompt="blue", seed=7, cfg_scale=3, sampler_name="DPM++ 2M", scheduler="karras", **SMALL
    )
    expected = daguerre.generate(
        studio.workers[0].model_of("tiny"), prompt="a red apple", negative_prompt="blue", seed=7, guidance_scale=3.0, sampler="dpmpp_2m",
        spacing="karras", **SMALL,
    )  # fmt: skip
    assert np.array_equal(np.asarray(result.image), np.asarray(expected[0].image))
    info = result.info
    assert (info["seed"], info["all_seeds"], info["sampler_name"]) == (7, [7], "DPM++ 2M")
    assert info["infotexts"][0].startswith("a red apple\nNegative prompt: blue\nSteps: 3")
    assert info["sd_model_name"] == "tiny"
    assert len(info["sd_model_hash"]) == 10
    assert info["warnings"] == []
    assert result.parameters["prompt"] == "a red apple"


def test_batches(api):
    result = api.txt2img(prompt="x", seed=3, batch_size=2, n_iter=2, **SMALL)
    assert result.info["all_seeds"] == [3, 4, 5, 6]
    single = api.txt2img(prompt="x", seed=5, **SMALL)
    assert np.abs(np.asarray(result.images[2], int) - np.asarray(single.image, int)).max() <= 1


def test_the_seed_is_random_unless_it_is_given(api):
    seeds = {api.txt2img(prompt="x", **SMALL).info["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert min(seeds) >= 0


def test_hires_fix(api):
    result = api.txt2img(
        prompt="x", enable_hr=True, hr_scale=2, hr_upscaler=webuiapi.HiResUpscaler.Lanczos, denoising_strength=0.7, **SMALL
    )
    assert result.image.size == (64, 64)
    result = api.txt2img(prompt="x", enable_hr=True, hr_upscaler=webuiapi.HiResUpscaler.ESRGAN_4x, hr_resize_x=48, **SMALL)
    assert result.image.size == (48, 48)
    assert any("R-ESRGAN 4x+ is not here; Lanczos was used" in warning for warning in result.info["warnings"])


def test_img2img(api):
    result = api.img2img(images=[sample_image()], prompt="x", denoising_strength=0.5, seed=1, **SMALL)
    assert result.image.size == (32, 32)
    assert result.parameters["init_images"] is None
    assert result.info["warnings"] == []  # the fields about a mask mean nothing without one
    with pytest.raises(RuntimeError, match="Init image not found"):
        api.img2img(images=[], prompt="x")


def test_a_mask_keeps_the_rest(api):
    image, mask = sample_image(), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    result = api.img2img(images=[image], mask_image=mask, mask_blur=0, prompt="x", denoising_strength=1.0, inpainting_fill=1, **SMALL)
    assert np.array_equal(np.asarray(result.image)[:, 16:], np.asarray(image)[:, 16:])
    assert not np.array_equal(np.asarray(result.image)[:, :16], np.asarray(image)[:, :16])
    inverted = api.img2img(
        images=[image], mask_image=mask, mask_blur=0, inpainting_mask_invert=1, prompt="x", denoising_strength=1.0, **SMALL
    )
    assert np.array_equal(np.asarray(inverted.image)[:, :16], np.asarray(image)[:, :16])
    with pytest.raises(RuntimeError, match="proportions"):
        api.img2img(images=[image], mask_image=mask.resize((16, 64)), prompt="x", **SMALL)


def test_a_mask_alone_is_generated_at_the_full_size(api, studio):
    image, mask = sample_image((96, 64)), Image.new("L", (96, 64))
    mask.paste(255, (70, 10, 80, 20))
    call = {"images": [image], "mask_image": mask, "mask_blur": 0, "prompt": "x", "denoising_strength": 1.0, "seed": 3, **SMALL}
    result = api.img2img(**call, inpaint_full_res=True, inpaint_full_res_padding=4)
    assert result.image.size == (96, 64)
    before, after, hole = np.asarray(image), np.asarray(result.image), np.asarray(mask) > 0
    assert np.array_equal(after[~hole], before[~hole])
    expected = daguerre.generate(
        studio.workers[0].model_of("tiny"), prompt="x", seed=3, guidance_scale=7.0, sampler="euler_a",
        eta=1.0, task=Inpaint(image, mask, 1.0, 0, crop_padding=4), **SMALL,
    )  # fmt: skip
    assert np.array_equal(after, np.asarray(expected[0].image))
    whole = api.img2img(**call, inpaint_full_res=False)
    assert whole.image.size == (32, 32)  # the image itself is fitted to the size


def test_progress_interrupt_and_skip(api, post, studio):
    idle = api.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    api.util_wait_for_ready(check_interval=0.01)
    results: list = []
    caller = threading.Thread(target=lambda: results.append(post("txt2img", prompt="x", steps=900, width=32, height=32).json()))
    caller.start()
    wait_until(lambda: api.get_progress()["state"]["sampling_step"] > 0)
    state = api.get_progress()
    assert 0 < state["progress"] < 1
    assert state["state"]["sampling_steps"] == 900
    assert opened(state["current_image"]).size == (8, 8)
    assert post("progress?skip_current_image=true").status_code == 405
    assert httpx2.get(f"{api.baseurl}/progress?skip_current_image=true").json()["current_image"] is None
    assert api.interrupt() == {}
    caller.join(30)
    assert opened(results[0]["images"][0]).size == (32, 32)  # as it was
    assert json.loads(results[0]["info"])["interrupted"] is True

    caller = threading.Thread(target=lambda: results.append(post("txt2img", prompt="x", steps=300, n_iter=2, width=32, height=32).json()))
    caller.start()
    wait_until(lambda: (job := studio.queue.running()) is not None and job.progress.step > 0)
    assert api.skip() is None
    wait_until(lambda: (job := studio.queue.running()) is not None and job.progress.image == 1 and job.progress.step > 300)
    api.interrupt()
    caller.join(30)
    assert len(results[1]["images"]) == 1


def test_interrupt_hits_nothing_when_nothing_runs(api):
    assert api.interrupt() == {}
    assert api.skip() is None
    assert api.txt2img(prompt="x", **SMALL).image


def test_models_can_be_listed_and_switched(api, studio):
    models = api.get_sd_models()
    assert {model["model_name"] for model in models} == {"tiny", "emoji", "ddpm", "ldm", "vqgan", "vqvae"}
    for model in models:
        assert set(model) == {"title", "model_name", "hash", "sha256", "filename", "config"}
        assert "/" not in model["filename"]
    current = api.util_get_current_model()
    assert current in api.util_get_model_names()
    assert api.set_options(api.get_options()) is None  # open-webui sends all of them back
    api.util_set_model("emoji")
    assert api.get_options()["sd_model_checkpoint"].startswith("emoji")
    assert studio.model == "emoji"
    api.util_set_model("tiny")
    assert api.txt2img(prompt="x", **SMALL).info["sd_model_name"] == "tiny"


def test_override_settings_apply_to_one_call(api, studio):
    result = api.txt2img(prompt="x", seed=1, override_settings={"sd_model_checkpoint": "tiny", "CLIP_stop_at_last_layers": 2}, **SMALL)
    assert result.info["clip_skip"] == 2
    plain = api.txt2img(prompt="x", seed=1, **SMALL)
    assert plain.info["clip_skip"] == 1
    result = api.txt2img(prompt="x", override_settings={"sd_vae": "other.pt", "samples_format": "jpg"}, **SMALL)
    assert len(result.info["warnings"]) == 2


def test_clip_skip_is_an_option(api):
    api.set_options({"CLIP_stop_at_last_layers": 2})
    assert api.txt2img(prompt="x", **SMALL).info["clip_skip"] == 2
    api.set_options({"CLIP_stop_at_last_layers": 1})
    assert api.txt2img(prompt="x", **SMALL).info["clip_skip"] == 1


def test_every_list_answers(api):
    for answer in (
        api.get_cmd_flags(), api.get_samplers(), api.get_sd_vae(), api.get_upscalers(), api.get_latent_upscale_modes(), api.get_loras(),
        api.get_hypernetworks(), api.get_face_restorers(), api.get_realesrgan_models(), api.get_prompt_styles(), api.get_scripts(),
        api.get_embeddings(), api.get_memory(), api.get_schedulers(), api.util_get_sampler_names(), api.util_get_scheduler_names(),
    ):  # fmt: skip
        assert isinstance(answer, dict | list)
    assert api.refresh_checkpoints() is None
    assert api.get_memory()["ram"]["total"] > 0


@pytest.mark.parametrize("name", sampler_names())
def test_every_sampler_that_is_offered_runs(api, name):
    result = api.txt2img(prompt="x", sampler_name=name, seed=1, width=32, height=32, steps=5)
    assert np.asarray(result.image).std() > 0
    assert not [warning for warning in result.info["warnings"] if "ampler" in warning]


@pytest.mark.parametrize("name", ["automatic", *SPACINGS])
def test_every_scheduler_that_is_offered_runs(api, name):
    assert name in api.util_get_scheduler_names()
    assert api.txt2img(prompt="x", sampler_name="Euler", scheduler=name, **SMALL).image


def test_eta_reaches_only_samplers_that_add_noise():
    for name in sampler_names():
        sampler, _, eta = requested_sampler(SdapiBody(sampler_name=name, eta=1.0, scheduler="automatic"))
        chosen = SAMPLERS[sampler or ""]
        assert (eta is not None) == ((chosen.stochastic or name == "DDIM") and chosen.accepts("eta")), name
    assert requested_sampler(SdapiBody(sampler_name="DPM++ 2M Karras", eta=1.0)) == ("dpmpp_2m", "karras", None)
    assert parse_sampler_name("DPM++ 2M Karras").spacing == "karras"


def test_what_is_not_supported_is_named(api):
    scripts = {"ADetailer": {"args": [True, {"ad_model": "face"}]}}
    result = api.txt2img(prompt="x", styles=["pen"], restore_faces=True, s_churn=5, alwayson_scripts=scripts, **SMALL)
    text = " ".join(result.info["warnings"])
    for name in ("styles", "restore_faces", "s_churn", "alwayson_scripts.ADetailer"):
        assert name in text
    unit = webuiapi.ControlNetUnit(image=sample_image(), model="canny")
    with pytest.raises(RuntimeError, match="There is no controlnet"):
        api.txt2img(prompt="x", controlnet_units=[unit], **SMALL)
    with pytest.raises(RuntimeError, match="Scripts are not supported"):
        api.txt2img(prompt="x", script_name="X/Y/Z plot", **SMALL)
    with pytest.raises(RuntimeError, match="501"):
        api.interrogate(sample_image())
    with pytest.raises(RuntimeError, match="Sampler not found"):
        api.txt2img(prompt="x", sampler_name="none such", **SMALL)
    with pytest.raises(RuntimeError, match="Scheduler not found"):
        api.txt2img(prompt="x", scheduler="none such", **SMALL)


def test_an_idle_extension_is_not_warned_of():
    for arguments in ({"args": []}, {"args": [False]}, {"args": [{"enabled": False}]}, {}, {"args": [False, {"enabled": False}]}):
        assert not script_is_active(arguments)
    assert script_is_active({"args": [{"enabled": True, "model": "canny"}]})


def test_sizes(post):
    own = post("txt2img", prompt="x", steps=1).json()
    assert opened(own["images"][0]).size == (32, 32)
    far = post("txt2img", prompt="x", steps=1, width=131, height=128).json()
    assert opened(far["images"][0]).size == (132, 128)
    text = " ".join(json.loads(far["info"])["warnings"])
    assert "rounded" in text
    assert "far from the model's own 32x32" in text
    for values in ({"width": 0}, {"width": -1}, {"width": 10**9}, {"steps": 0}, {"steps": 10**9}, {"batch_size": 0}, {"width": "wide"}):
        reply = post("txt2img", prompt="x", **values)
        assert reply.status_code == 422
        assert set(reply.json()) == {"error", "detail", "body", "errors"}


def test_png_info(api):
    image = api.txt2img(prompt="a red apple", seed=5, alwayson_scripts={}, **SMALL).image  # the client keeps those of its last call
    result = api.png_info(image)
    assert result.info.startswith("a red apple\nSteps: 3")
    assert result.json["items"]["parameters"] == result.info
    assert result.parameters["Seed"] == "5"
    assert api.png_info(sample_image()).info == ""


def test_extras(api):
    image = sample_image()
    assert api.extra_single_image(image, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2).image.size == (64, 64)
    assert api.extra_single_image(image, upscaler_1="Nearest", resize_mode=1, upscaling_resize_w=48, upscaling_resize_h=40).image.size == (
        48,
        40,
    )
    assert api.extra_single_image(image, upscaler_1="None").image.size == (32, 32)
    assert [each.size for each in api.extra_batch_images([image, image], upscaler_1="Lanczos").images] == [(64, 64)] * 2
    assert "gfpgan_visibility" in api.extra_single_image(image, upscaler_1="Lanczos", gfpgan_visibility=1).info
    with pytest.raises(RuntimeError, match="upscaler_1"):
        api.extra_single_image(image, upscaler_1=webuiapi.Upscaler.ESRGAN_4x)


def test_requests_of_other_clients(address, post):
    get = lambda path: httpx2.get(f"{address}{path}")  # noqa: E731
    # Bots look for a page, then whether a login is needed.
    assert httpx2.head(address).status_code in (200, 404)
    assert get("/sdapi/v1/cmd-flags").status_code == 200
    assert get("/config").json()["components"] == []
    assert httpx2.post(f"{address}/login", data={"username": "me", "password": "secret"}).json() == {"success": True}
    for path in ("prompt-styles", "face-restorers", "hypernetworks", "realesrgan-models", "sd-vae"):
        assert get(f"/sdapi/v1/{path}").json() == []
    assert get("/sdapi/v1/embeddings").json() == {"loaded": {}, "skipped": {}}
    # A progress request with a JSON body, and one that asks for no image.
    assert httpx2.request("GET", f"{address}/sdapi/v1/progress", json={"skip": True}).status_code == 200
    # Posts without a body, with an empty object, with an empty text.
    for body in ({}, {"json": {}}, {"json": ""}):
        assert httpx2.post(f"{address}/sdapi/v1/interrupt", **body).json() == {}
    for body in ({}, {"json": ""}):
        assert httpx2.post(f"{address}/sdapi/v1/unload-checkpoint", **body).status_code == 200
        assert httpx2.post(f"{address}/sdapi/v1/reload-checkpoint", **body).status_code == 200
    # A number as a text, a data URI with a blank, an empty authorization.
    assert opened(
        post("txt2img", prompt="x", steps=2, enable_hr=True, hr_scale="1.5", denoising_strength="0.7").json()["images"][0]
    ).size == (48, 48)
    spaced = "data:image/png;base64, " + base64_png(sample_image())
    assert post("img2img", prompt="x", steps=2, init_images=[spaced], width=32, height=32).status_code == 200
    assert httpx2.get(f"{address}/sdapi/v1/options", headers={"Authorization": ""}).status_code == 200
    # Extra fields, and no images wanted.
    reply = post("txt2img", prompt="x", steps=1, send_images=False, save_images=True, foo={"bar": 1}).json()
    assert reply["images"] == []
    assert json.loads(reply["info"])["warnings"] == ["foo is not supported and was ignored"]


def test_wrong_images_are_typed_errors(post):
    for value in ("", "!!!", base64_png(sample_image())[:50], "data:text/html;base64,PGI+"):
        reply = post("img2img", prompt="x", init_images=[value])
        assert reply.status_code in (400, 404), reply.text
        assert reply.json()["detail"]
    assert post("img2img", prompt="x", init_images=[base64_png(sample_image())], mask="!!!").status_code == 400
    assert len(png(sample_image())) > 0


def test_http_basic_is_sent_by_the_client(address):
    api = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", username="me", password="secret")
    assert api.get_samplers()


def wait_until(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)
