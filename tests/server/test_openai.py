"""The official `openai` client, unmodified and in strict response validation, passes every call."""

import base64
import time

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

import daguerre
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.server.jobs.worker import _is_partial
from tests.server.conftest import opened, png, sample_image

FAST = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def api(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", _strict_response_validation=True, max_retries=0) as client:
        yield client


def test_models(api):
    models = api.models.list()
    assert models.data[0].id == "tiny"
    assert "emoji" in [model.id for model in models.data]
    assert api.models.retrieve("tiny").owned_by == "daguerre"
    with pytest.raises(openai.NotFoundError) as error:
        api.models.retrieve("no/such model")
    assert error.value.code == "model_not_found"


def test_generate_gives_the_image_of_the_library(api, studio):
    reply = api.images.generate(prompt="a red apple", model="tiny", extra_body={**FAST, "seed": 7, "guidance_scale": 3.0})
    expected = daguerre.generate(studio.workers[0].model_of("tiny"), prompt="a red apple", steps=2, seed=7, guidance_scale=3.0)[0].image
    assert np.array_equal(np.asarray(opened(reply.data[0].b64_json)), np.asarray(expected))
    assert isinstance(reply.created, int)
    assert reply.size == "32x32"
    assert reply.usage is None
    assert not reply.data[0].url


def test_n_size_format_and_quality(api):
    reply = api.images.generate(
        prompt="x", n=2, size="64x48", quality="low", output_format="webp", background="auto", moderation="low", user="me", extra_body=FAST
    )
    images = [opened(each.b64_json) for each in reply.data]
    assert [image.size for image in images] == [(64, 48)] * 2
    assert {image.format for image in images} == {"WEBP"}
    assert np.asarray(images[0]).tobytes() != np.asarray(images[1]).tobytes()
    assert (reply.quality, reply.output_format, reply.background) == ("low", "webp", "opaque")
    reply = api.images.generate(prompt="x", output_format="jpeg", output_compression=50, quality="auto", size="auto", extra_body=FAST)
    assert opened(reply.data[0].b64_json).format == "JPEG"
    assert reply.quality is None


def test_urls_lead_to_the_image(api, address):
    reply = api.images.generate(prompt="x", response_format="url", output_format="webp", extra_body=FAST)
    assert reply.data[0].url.startswith(address)
    assert opened(httpx2.get(reply.data[0].url).content).format == "WEBP"


def test_names_of_openai_mean_the_loaded_model(api):
    reply = api.images.generate(prompt="x", model="gpt-image-1", extra_body=FAST)
    assert reply.model_extra["warnings"] == ["gpt-image-1 is not here; the images come from tiny."]
    with pytest.raises(openai.NotFoundError) as error:
        api.images.generate(prompt="x", model="flux", extra_body=FAST)
    assert error.value.code == "model_not_found"


def test_unknown_fields_and_rounded_sizes_are_warned_of(api):
    reply = api.images.generate(prompt="x", size="33x32", extra_body={**FAST, "loras": ["a"], "style": "vivid"})
    assert opened(reply.data[0].b64_json).size == (32, 32)
    assert [warning.split()[0] for warning in reply.model_extra["warnings"]] == ["The", "loras", "style"]


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"size": "big"}, "size"),
        ({"size": "0x32"}, "size"),
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"output_format": "svg"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"quality": "best"}, "quality"),
        ({"size": "9999999x8"}, "width"),
        ({"extra_body": {"num_inference_steps": 10**6}}, "steps"),
        ({"extra_body": {"guidance_scale": "much"}}, "guidance_scale"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"partial_images": 4}, "partial_images"),
    ],
)
def test_wrong_values_are_typed_errors(api, values, param):
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError)) as error:
        api.images.generate(**{"prompt": "x", **values})
    assert error.value.param == param
    assert error.value.code
    assert error.value.response.headers["x-should-retry"] == "false"


def test_a_stream_shows_partial_images(api):
    events = list(api.images.generate(prompt="x", stream=True, partial_images=2, extra_body={"num_inference_steps": 6, "seed": 3}))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    sizes = {opened(event.b64_json).size for event in events}
    assert sizes == {(32, 32)}
    single = api.images.generate(prompt="x", extra_body={"num_inference_steps": 6, "seed": 3})
    assert opened(single.data[0].b64_json).tobytes() == opened(events[-1].b64_json).tobytes()
    assert events[-1].usage.total_tokens == 0


def test_a_stream_of_several_images(api):
    events = list(api.images.generate(prompt="x", n=2, stream=True, extra_body=FAST))
    assert [event.type for event in events] == ["image_generation.completed"] * 2


def test_partial_images_are_spread_over_the_steps():
    assert [i for i in range(20) if _is_partial(i, 20, 3)] == [4, 9, 14]
    assert [i for i in range(20) if _is_partial(i, 20, 0)] == []


def test_edits_keep_every_byte_outside_the_hole(api):
    image = sample_image((32, 32))
    mask = image.convert("RGBA")
    mask.paste((9, 9, 9, 0), (0, 0, 16, 32))
    reply = api.images.edit(image=("image.png", png(image)), mask=("mask.png", png(mask)), prompt="a blue apple", extra_body=FAST)
    result = np.asarray(opened(reply.data[0].b64_json))
    assert np.array_equal(result[:, 16:], np.asarray(image)[:, 16:])
    assert not np.array_equal(result[:, :16], np.asarray(image)[:, :16])


def test_an_edit_of_a_transparent_image_fills_its_hole(api):
    image = sample_image((32, 32), "RGBA")
    reply = api.images.edit(image=[png(image)], prompt="x", n=1, extra_body=FAST)
    result = np.asarray(opened(reply.data[0].b64_json))
    assert np.array_equal(result[:, :16], np.asarray(image)[:, :16, :3])


def test_an_edit_without_a_hole_changes_the_whole_image(api):
    reply = api.images.edit(image=png(sample_image()), prompt="x", size="64x64", output_format="webp", extra_body=FAST)
    assert opened(reply.data[0].b64_json).size == (64, 64)
    assert reply.output_format == "webp"


def test_edits_can_be_streamed(api):
    events = list(
        api.images.edit(image=png(sample_image()), prompt="x", stream=True, partial_images=1, extra_body={"num_inference_steps": 6})
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_wrong_edits_are_typed_errors(api):
    image, small = png(sample_image()), png(sample_image((16, 16), "RGBA"))
    for values, param in (
        ({"image": image, "mask": small}, "mask"),
        ({"image": image, "mask": image}, "mask"),
        ({"image": b"no image"}, "image"),
        ({"image": b""}, "image"),
        ({"image": [image, image]}, "image"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            api.images.edit(prompt="x", **values)
        assert error.value.param == param


def test_variations_are_named_as_not_served(api):
    with pytest.raises(openai.InternalServerError) as error:
        api.images.create_variation(image=png(sample_image()))
    assert error.value.status_code == 501
    assert error.value.response.headers["x-should-retry"] == "false"


def test_a_caller_who_leaves_cancels_its_own_job(address, studio, api):
    before = studio.queue.finished["cancelled"]
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{address}/v1/images/generations", json={"prompt": "x", "num_inference_steps": 1000}, timeout=1.0)
    wait_for(lambda: studio.queue.finished["cancelled"] == before + 1)
    with (
        pytest.raises(httpx2.ReadTimeout),
        httpx2.stream(
            "POST", f"{address}/v1/images/generations", json={"prompt": "x", "stream": True, "num_inference_steps": 1000}, timeout=1.0
        ) as stream,
    ):
        list(stream.iter_bytes())
    wait_for(lambda: studio.queue.finished["cancelled"] == before + 2)
    assert api.images.generate(prompt="x", extra_body=FAST).data


def test_no_answer_names_a_path(api, studio):
    reply = api.images.generate(prompt="x", extra_body=FAST)
    data = base64.b64decode(reply.data[0].b64_json)
    assert str(studio.store.folder).encode() not in data
    newest = studio.store.images(limit=1)[0][0]
    _, provenance = read_provenance(studio.store.path("images", newest.id))
    assert provenance.model_path is None
    assert isinstance(opened(reply.data[0].b64_json), Image.Image)


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
