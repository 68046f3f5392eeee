"""Jobs: the images are those of the library, whatever way they come; the queue can be cancelled, moved, edited and paused."""

import json
import threading
import time

import numpy as np
import pytest
from starlette.testclient import TestClient

import daguerre
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.server.jobs import job_queue
from daguerre.server.studio import Studio
from tests.server.conftest import base64_png, finished, opened, sample_image

SLOW = {"steps": 400, "prompt": "a red apple"}  # runs until it is cancelled


def events_of(client: TestClient, job_id: str, **headers: str) -> list[tuple[int, str, dict]]:
    """All events of a job up to its end: id, kind, data."""
    text = client.get(f"/api/jobs/{job_id}/events", headers=headers).text
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def wait_until(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def running(client, studio):
    """A job that runs for long; it is cancelled at the end of the test."""
    job_id = client.post("/api/jobs", json={"request": SLOW}).json()["id"]
    wait_until(lambda: studio.queue.get(job_id).progress.step > 0)
    yield job_id
    client.post("/api/jobs/" + job_id + "/cancel")
    finished(client, job_id)


def test_a_job_gives_the_images_of_the_library(client, studio: Studio, run_job):
    request = {"prompt": "a red apple", "steps": 3, "seed": 5, "num_images": 3, "guidance_scale": 3.0}
    job = run_job(request, batch_size=2)
    assert (job["state"], len(job["images"]), job["error"]) == ("done", 3, None)
    model = studio.workers[0].model_of("tiny")
    for image_id, expected in zip(job["images"], daguerre.generate(model, **request), strict=True):
        got = opened(client.get(f"/api/images/{image_id}").content)
        assert np.abs(np.asarray(got, int) - np.asarray(expected.image, int)).max() <= 1  # another batch size may round differently
        info = client.get(f"/api/images/{image_id}/info").json()
        again = daguerre.generate(model, daguerre.Request.from_json(info["request"]))[0].image
        assert np.array_equal(np.asarray(again), np.asarray(got))


def test_events_show_every_step_and_can_be_resumed(client, studio, run_job):
    before = studio.events.last_id
    job = run_job({"prompt": "a red apple", "steps": 4})
    log = events_of(client, job["id"], **{"Last-Event-ID": str(before)})
    kinds = [kind for _, kind, _ in log]
    steps = [data for _, kind, data in log if kind == "step"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    previews = [step["preview"] for step in steps if step["preview"] is not None]  # later ones wait until previews have had their share
    assert steps[0]["preview"] == previews[0]
    assert all(preview.startswith("data:image/webp;base64,") for preview in previews)
    assert kinds[-1] == "job"
    assert log[-1][2]["value"]["state"] == "done"
    assert kinds.count("image") == 1
    middle = log[len(log) // 2][0]
    assert events_of(client, job["id"], **{"Last-Event-ID": str(middle)}) == [event for event in log if event[0] > middle]
    assert [kind for _, kind, _ in events_of(client, job["id"])] == ["job"]  # a new reader begins with the present state
    assert [kind for _, kind, _ in events_of(client, job["id"], **{"Last-Event-ID": "1"})] == ["job"]  # of an earlier process


def test_cancel_ends_within_a_step_and_is_idempotent(client, studio, running):
    step = studio.queue.get(running).progress.step
    assert client.post(f"/api/jobs/{running}/cancel").json() == {"cancelled": True}
    job = finished(client, running)
    assert job["state"] == "cancelled"
    assert job["progress"]["step"] <= step + 3  # one that was at work, and one or two before the call arrived
    assert client.post(f"/api/jobs/{running}/cancel").json() == {"cancelled": True}
    assert job["images"] == []


def test_cancel_of_a_finished_job_says_no(client, run_job):
    assert client.post(f"/api/jobs/{run_job()['id']}/cancel").json() == {"cancelled": False}


def test_the_queue_is_reordered_edited_and_paused(client, running):
    first, second, third = (client.post("/api/jobs", json={"request": {"steps": 2, "prompt": text}}).json()["id"] for text in "abc")

    def order():
        return [job["id"] for job in client.get("/api/jobs").json()["jobs"] if job["state"] == "queued"]

    assert order() == [first, second, third]
    assert client.post(f"/api/jobs/{third}/move", json={"before": first}).json()["position"] == 0
    assert order() == [third, first, second]
    client.post(f"/api/jobs/{third}/move", json={"before": None})
    assert order() == [first, second, third]
    assert client.post(f"/api/jobs/{running}/move", json={"before": None}).status_code == 409
    edited = client.post(f"/api/jobs/{second}/edit", json={"request": {"prompt": "a blue apple", "seed": 9}}).json()
    assert (edited["request"]["prompt"], edited["request"]["seed"], edited["request"]["steps"]) == ("a blue apple", 9, 2)
    assert client.post(f"/api/jobs/{second}/edit", json={"request": {"stps": 1}}).status_code == 422
    assert client.post("/api/queue/pause", json={"paused": True}).json() == {"paused": True}
    client.post(f"/api/jobs/{running}/cancel")
    finished(client, running)
    assert order() == [first, second, third]
    assert client.post(f"/api/jobs/{first}/cancel").json() == {"cancelled": True}
    client.post("/api/queue/pause", json={"paused": False})
    assert finished(client, second)["state"] == finished(client, third)["state"] == "done"
    assert finished(client, second)["request"]["prompt"] == "a blue apple"
    assert finished(client, first)["state"] == "cancelled"


def test_previews_never_cross_between_jobs(client, studio):
    ids = [client.post("/api/jobs", json={"request": {"steps": 3, "prompt": f"apple {i}", "seed": i}}).json()["id"] for i in range(6)]
    jobs = [finished(client, job_id) for job_id in ids]
    for job in jobs:
        log = studio.events.since(0, job["id"])
        assert [json.loads(event.data)["step"] for event in log if event.kind == "step"] == [1, 2, 3]
        assert len(job["images"]) == 1
        assert client.get(f"/api/images/{job['images'][0]}/info").json()["prompt"] == job["request"]["prompt"]
    assert len({image for job in jobs for image in job["images"]}) == 6


def test_a_full_queue_refuses_before_the_body_is_read(client, studio, running):
    queued = []
    while not studio.queue.is_full:
        queued.append(client.post("/api/jobs", json={"request": {"steps": 1}}).json()["id"])
    assert len(queued) == studio.queue.limit
    started = time.monotonic()
    reply = client.post("/api/jobs", content=b"{ this is not read", headers={"Content-Type": "application/json"})
    assert time.monotonic() - started < 5
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    assert 1 <= int(reply.headers["retry-after"]) <= 120
    assert client.post("/sdapi/v1/txt2img", json={}).status_code == 429
    assert client.post("/v1/images/generations", json={"prompt": "x"}).headers["x-should-retry"] == "true"
    assert "daguerre_requests_refused_total 3" in client.get("/metrics").text
    for job_id in queued:
        client.post(f"/api/jobs/{job_id}/cancel")


def test_input_images_make_a_job_reproducible(client, studio, run_job):
    image = sample_image()
    task = {"name": "img2img", "image": {"data": "data:image/png;base64," + base64_png(image)}, "strength": 0.5}
    job = run_job({"prompt": "a blue apple", "task": task, "steps": 4})
    kept = job["request"]["task"]["image"]
    assert set(kept) == {"id", "sha256"}
    again = run_job(client.get(f"/api/images/{job['images'][0]}/info").json()["request"])
    first, second = (client.get(f"/api/images/{each['images'][0]}").content for each in (job, again))
    assert np.array_equal(np.asarray(opened(first)), np.asarray(opened(second)))
    _, provenance = read_provenance(studio.store.path("images", job["images"][0]))
    assert provenance.model_path is None
    assert provenance.request.task.input_images["image"].path is None


def test_an_inpainted_image_keeps_every_byte_outside_the_mask(client, run_job):
    image, mask = sample_image(), sample_image().convert("L").point(lambda _: 0)
    mask.paste(255, (0, 0, 16, 32))
    task = {"name": "inpaint", "image": {"data": base64_png(image)}, "mask": {"data": base64_png(mask)}}
    job = run_job({"prompt": "x", "task": task})
    result = np.asarray(opened(client.get(f"/api/images/{job['images'][0]}").content))
    assert np.array_equal(result[:, 16:], np.asarray(image)[:, 16:])
    assert not np.array_equal(result[:, :16], np.asarray(image)[:, :16])


def test_a_hires_job_names_its_second_pass(client, studio, run_job):
    job = run_job({"prompt": "x", "steps": 2, "task": {"name": "hires", "scale": 2, "strength": 0.5}})
    nodes = [json.loads(event.data)["node"] for event in studio.events.since(0, job["id"]) if event.kind == "step"]
    assert nodes == ["sampler", "sampler", "hires"]
    info = client.get(f"/api/images/{job['images'][0]}/info").json()
    assert (info["width"], info["height"], info["steps_kept"]) == (64, 64, 3)
    frames = [opened(client.get(f"/api/images/{job['images'][0]}/steps/{i}").content).size for i in range(3)]
    assert frames == [(32, 32), (32, 32), (64, 64)]
    plan = client.post("/api/plan", json={"request": job["request"]}).json()
    assert {"sampler", "hires"} <= {node["id"] for node in plan["nodes"]}
    assert (plan["width"], plan["height"], plan["error"]) == (64, 64, None)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"sampler": "eulr"}, "Did you mean 'euler'"),
        ({"spacing": "karas"}, "Did you mean 'karras'"),
        ({"width": 0}, "width is 0"),
        ({"width": -1}, "width is -1"),
        ({"width": 10**9}, "limit of 4096"),
        ({"width": 30}, "multiple of 4"),
        ({"width": "wide"}, "width"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"steps": 10**6}, "limit of 1000"),
        ({"num_images": 1000}, "limit of 64"),
        ({"prompt": "x" * 1_000_000}, "limit of 32000"),
        ({"prompt": ["a", "b"]}, "one text"),
        ({"stps": 3}, "Did you mean 'steps'"),
        ({"width": 4096, "height": 4096, "steps": 1000}, "more than the limit of 4e+09"),
        ({"task": {"name": "img2im"}}, "Did you mean 'img2img'"),
        ({"task": {"name": "img2img", "image": {"id": "../../etc/passwd"}}}, "no image"),
        ({"task": {"name": "img2img", "image": {"data": "http://127.0.0.1/x.png"}}}, "not fetched"),
        ({"task": {"name": "img2img", "image": {"data": "!!!"}}}, "base64"),
        ({"task": {"name": "img2img", "image": 7}}, "task.image"),
        ({"task": {"name": "img2img"}}, "img2img"),
        ({"task": {"name": "upscale", "image": {"data": base64_png(sample_image())}}}, "cannot do upscale"),
    ],
)
def test_wrong_requests_are_typed_errors(client, request_, message):
    reply = client.post("/api/jobs", json={"request": request_})
    assert reply.status_code in (400, 404, 422), reply.text
    error = reply.json()["error"]
    assert message in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    ['{"request": {"width": NaN}}', '{"request": [', "[]", "null", '{"batch_size": 0}', '{"x": 1}', "[" * 100_000, '{"model": "none"}'],
)
def test_wrong_bodies_are_typed_errors(client, body):
    reply = client.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 404, 422)
    assert reply.json()["error"]["message"]


def test_a_job_that_fails_says_why_and_the_next_one_runs(client, run_job):
    image, mask = sample_image(), sample_image((64, 16)).convert("L")
    task = {"name": "inpaint", "image": {"data": base64_png(image)}, "mask": {"data": base64_png(mask)}}
    job = run_job({"prompt": "x", "task": task})
    assert job["state"] == "failed"
    assert "64×16" in job["error"]["message"]
    assert run_job()["state"] == "done"


def test_an_empty_queue_collects_and_returns_the_memory_of_finished_runs(run_job, monkeypatch: pytest.MonkeyPatch):
    done, calls = threading.Event(), []
    monkeypatch.setattr(job_queue, "TRIM_AFTER", 0.01)
    monkeypatch.setattr(job_queue.gc, "collect", lambda *_: calls.append("collect"))
    monkeypatch.setattr(job_queue, "trim_heap", lambda: (calls.append("trim"), done.set()))
    run_job()
    assert done.wait(30)
    assert calls[-2:] == ["collect", "trim"]
