"""What is on the disk: the gallery, its search, deletion with undo, and what happens to a damaged, locked or full disk."""

import base64
import errno
import json
import sqlite3
import time
from dataclasses import replace

import pytest
from PIL import Image, PngImagePlugin

import daguerre
from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata.write import provenance_of
from daguerre.pipelines.request import Request
from daguerre.server.errors import ApiError
from daguerre.server.jobs.job import Job
from daguerre.server.jobs.results import SampledBatch, encode_image, save_results, thumbnail_of
from daguerre.server.storage.image_records import public_request
from daguerre.server.storage.store import Store
from daguerre.server.studio import Studio
from tests.server.conftest import base64_png, finished, opened, png, sample_image


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


def fill(store: Store, model, count: int = 1, **request) -> Job:
    """A finished job with images that were never sampled."""
    request = Request(num_images=count, **{"prompt": "a red apple", **request})
    provenance = provenance_of(model, request)
    images = [daguerre.GeneratedImage(sample_image(), replace(provenance, index=i)) for i in range(count)]
    job = Job(request=public_request(request), model=model.name, state="done", finished=time.time(), batch_size=count)
    return save_results(store, job, 0, SampledBatch(images, [], []))


def test_images_are_listed_in_pages_newest_first(store, tiny_model):
    ids = [fill(store, tiny_model, prompt=f"apple {i}").images[0] for i in range(7)]
    first, after, total = store.images(limit=3)
    second, after, _ = store.images(limit=3, before=after)
    third, end, _ = store.images(limit=3, before=after)
    assert [image.id for image in [*first, *second, *third]] == ids[::-1]
    assert (total, end) == (7, None)


def test_search_finds_every_word(store, tiny_model):
    for prompt, negative, seed in (("a RED apple", "", 1), ("a blue pear", "red", 22), ("100% of a_b", "", 3)):
        fill(store, tiny_model, prompt=prompt, negative_prompt=negative, seed=seed)
    found = lambda text: sorted(image.request["seed"] for image in store.images(search=text)[0])  # noqa: E731
    assert found("red") == [1, 22]
    assert found("Apple red") == [1]
    assert found("22") == [22]
    assert found("tiny pear") == [22]
    assert found("0%") == [3]
    assert found("a_b") == [3]
    assert found("%") == [3]
    assert found("'; DROP TABLE images") == []
    assert store.images(model="other")[2] == 0
    assert store.images(task="txt2img")[2] == 3


def test_deleted_images_can_be_restored(store, tiny_model):
    keep, gone = fill(store, tiny_model).images[0], fill(store, tiny_model).images[0]
    assert store.set_deleted([gone, gone, "0" * 16], True) == [gone]
    assert [image.id for image in store.images()[0]] == [keep]
    assert [image.id for image in store.images(deleted=True)[0]] == [gone]
    store.prune()
    assert store.path("images", gone).exists()
    assert store.set_deleted([gone], False) == [gone]
    assert store.images()[2] == 2
    store.set_favourite(keep, True)
    assert [image.id for image in store.images(favourite=True)[0]] == [keep]


def test_a_damaged_database_is_kept_and_made_again_from_the_files(tmp_path, tiny_model):
    store = Store(tmp_path)
    images = fill(store, tiny_model, 2, prompt="a blue apple").images
    queued = Job(request=public_request(Request(prompt="later")), model="tiny")
    store.save_job(queued)
    before = store.images()[0]
    store.close()
    (tmp_path / "studio.db").write_bytes(b"damaged" * 1000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"studio.db{suffix}").unlink(missing_ok=True)

    again = Store(tmp_path)
    assert [note.split("(")[0] for note in again.notes] == [
        "The database was damaged ",
        "2 images were added to the gallery from their files.",
    ]
    after = again.images()[0]
    assert {image.id for image in after} == set(images)
    assert sorted(image.request["seed"] for image in after) == [0, 1]
    assert {image.parameters for image in after} == {image.parameters for image in before}
    assert [job.id for job in again.pending_jobs()] == [queued.id]
    (aside,) = tmp_path.glob("studio.damaged-*.db")
    assert aside.read_bytes().startswith(b"damaged")
    again.close()


@pytest.mark.parametrize("damage", [b"", b"SQLite format 3\0" + bytes(2000)], ids=["empty", "header"])
def test_an_empty_or_cut_database_is_made_again(tmp_path, tiny_model, damage):
    store = Store(tmp_path)
    image = fill(store, tiny_model).images[0]
    store.close()
    for file in tmp_path.glob("studio.db*"):
        file.unlink()
    (tmp_path / "studio.db").write_bytes(damage)
    again = Store(tmp_path)
    assert [each.id for each in again.images()[0]] == [image]
    again.close()


def test_rows_and_files_agree_at_the_start(tmp_path, tiny_model):
    store = Store(tmp_path)
    first, second = fill(store, tiny_model).images[0], fill(store, tiny_model).images[0]
    store.path("images", first).unlink()
    sample_image().save(tmp_path / "images" / ("f" * 16 + "-0.png"))  # without metadata: not ours
    store.close()
    again = Store(tmp_path)
    assert [each.id for each in again.images()[0]] == [second]
    assert again.notes == ["1 images are not listed any more, because their files are gone."]
    again.close()


def test_a_second_server_cannot_use_the_folder(store, tmp_path):
    with pytest.raises(DaguerreError, match="Another server uses"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DaguerreError, match="--data-dir"):
        Store(tmp_path / "file" / "data")


def test_a_locked_database_is_a_typed_error_and_changes_nothing(store, tiny_model, monkeypatch):
    image = fill(store, tiny_model).images[0]
    other = sqlite3.connect(store.folder / "studio.db", isolation_level=None)
    store._connection.execute("PRAGMA busy_timeout = 20")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ApiError) as error:
        store.set_deleted([image], True)
    assert (error.value.status, error.value.code, error.value.retry_after) == (503, "database_locked", 5)
    assert not store.is_writable()
    other.execute("ROLLBACK")
    other.close()
    assert store.images()[2] == 1
    assert store.is_writable()


def test_a_full_disk_pauses_the_queue_and_loses_no_job(client, studio: Studio, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    client.post("/api/queue/pause", json={"paused": True})
    job_id = client.post("/api/jobs", json={"request": {"steps": 1, "prompt": "x"}}).json()["id"]
    with monkeypatch.context() as patch:
        patch.setattr("daguerre.server.jobs.results.write_image_with_metadata", full)
        client.post("/api/queue/pause", json={"paused": False})
        until = time.monotonic() + 30
        while not studio.queue.paused:
            assert time.monotonic() < until
            time.sleep(0.01)
    listing = client.get("/api/jobs").json()
    assert "No space left" in listing["paused_reason"]
    assert str(studio.store.folder) not in listing["paused_reason"]
    assert client.get(f"/api/jobs/{job_id}").json()["state"] == "queued"
    client.post("/api/queue/pause", json={"paused": False})
    assert finished(client, job_id)["state"] == "done"


def test_a_full_database_is_a_typed_error(client, studio, monkeypatch):
    def full(*_arguments):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("daguerre.server.storage.store._write_job", full)
        reply = client.post("/api/jobs", json={"request": {"steps": 1}})
    assert (reply.status_code, reply.json()["error"]["code"]) == (507, "disk_full")
    assert studio.queue.count("queued") == 0


def test_the_queue_and_its_pause_survive_a_restart(config, tmp_path):
    first = Studio(replace(config, data=tmp_path), [])
    first.queue.pause(True)
    jobs = [first.submit(first.read_request({"prompt": text, "steps": 1}))[0].id for text in "abc"]
    first.queue.move(jobs[2], jobs[0])
    first.close()
    second = Studio(replace(config, data=tmp_path), ["cpu"])
    assert second.queue.paused
    assert [job["id"] for job in second.queue.listing()["jobs"]] == [jobs[2], jobs[0], jobs[1]]
    second.start()
    second.queue.pause(False)
    runs = [second.queue.run_of(job_id) for job_id in jobs]
    assert [run.done.result(60).state for run in runs if run] == ["done"] * len([run for run in runs if run])
    assert second.store.images()[2] == 3
    assert not list((tmp_path / "queue").iterdir())
    second.close(60)


def test_gallery_routes(client, run_job):
    job = run_job({"prompt": "a red apple", "steps": 3, "num_images": 2})
    listing = client.get("/api/images", params={"limit": 1, "search": "APPLE"}).json()
    image = listing["images"][0]
    assert image["id"] == job["images"][1]
    assert (image["width"], image["height"], image["seed"], image["steps_kept"], image["has_attention"]) == (32, 32, 1, 3, False)
    assert client.get("/api/images", params={"limit": 1, "before": listing["next"]}).json()["images"][0]["id"] == job["images"][0]
    assert opened(client.get(image["thumbnail"]).content).format == "WEBP"
    download = client.get(image["url"], params={"download": True})
    assert download.headers["content-disposition"] == f'attachment; filename="{image["id"]}.png"'
    for kind in ("webp", "jpeg"):
        converted = opened(client.get(image["url"], params={"format": kind}).content)
        assert converted.format == kind.upper()
    assert client.post(f"{image['url']}/favourite", json={"favourite": True}).json()["favourite"] is True
    assert client.post("/api/images/delete", json={"ids": job["images"]}).json() == {"deleted": job["images"]}
    assert client.get("/api/images").json()["total"] == len(client.get("/api/images").json()["images"])
    assert client.post("/api/images/restore", json={"ids": job["images"]}).json() == {"restored": job["images"]}
    assert client.get(f"/api/images/{'0' * 16}-0").status_code == 404


def test_the_film_shows_the_image_of_each_step(client, run_job):
    image = run_job({"prompt": "a red apple", "steps": 3})["images"][0]
    film = client.get(f"/api/images/{image}/steps").json()
    assert [step["index"] for step in film["steps"]] == [0, 1, 2]
    frames = [opened(client.get(f"/api/images/{image}/steps/{i}").content).convert("RGB") for i in range(3)]
    assert {frame.size for frame in frames} == {(32, 32)}
    last = opened(encode_image(opened(client.get(f"/api/images/{image}").content), "WEBP", quality=90)).convert("RGB")
    difference = [abs(a - b) for a, b in zip(frames[2].tobytes(), last.tobytes(), strict=True)]
    assert sum(difference) / len(difference) < 4  # latents are kept in half precision
    assert client.get(f"/api/images/{image}/steps/3").status_code == 404


def test_attention_is_computed_once_and_kept(client, run_job):
    image = run_job({"prompt": "a red apple", "steps": 2})["images"][0]
    missing = client.get(f"/api/images/{image}/attention")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "attention_not_computed")
    job = finished(client, client.post(f"/api/images/{image}/attention").json()["id"])
    assert (job["state"], job["kind"], job["image"], job["images"]) == ("done", "attention", image, [])
    words = client.get(f"/api/images/{image}/attention").json()["words"]
    assert [word["text"] for word in words] == ["a", "red", "apple"]
    assert client.get(f"/api/images/{image}/info").json()["has_attention"]


def test_a_dropped_image_gives_all_that_made_it(client, studio, run_job):
    task = {"name": "img2img", "image": {"data": base64_png(sample_image())}, "strength": 0.5}
    job = run_job({"prompt": "a red apple", "task": task, "steps": 4, "seed": 3})
    data = client.get(f"/api/images/{job['images'][0]}").content
    report = client.post("/api/drop", json={"image": _text(data)}).json()
    assert (report["software"], report["model"], report["exact"], report["missing_inputs"]) == ("daguerre", "tiny", True, [])
    again = run_job(report["request"])
    assert opened(client.get(f"/api/images/{again['images'][0]}").content).tobytes() == opened(data).tobytes()
    studio.store.path("inputs", report["request"]["task"]["image"]["id"]).unlink()
    report = client.post("/api/drop", json={"image": _text(data)}).json()
    assert (report["exact"], report["missing_inputs"]) == (False, ["image"])


def test_a_dropped_image_of_another_program_names_what_was_not_read(client):
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        "a fox\nNegative prompt: blurry\nSteps: 9, Sampler: Euler a, CFG scale: 7, Seed: 4, Size: 32x32, Model: foo, ADetailer: x",
    )
    report = client.post("/api/drop", json={"image": _text(png(sample_image(), pnginfo=info))}).json()
    assert report["request"]["prompt"] == "a fox"
    assert (report["request"]["steps"], report["request"]["seed"], report["request"]["sampler"]) == (9, 4, "euler_a")
    assert (report["model"], report["model_known"], report["unread"]) == ("foo", False, {"ADetailer": "x"})
    plain = client.post("/api/drop", json={"image": base64_png(sample_image())}).json()
    assert (plain["software"], plain["request"]) == (None, None)
    assert client.get(f"/api/inputs/{plain['input']['id']}").status_code == 200


def test_settings_survive(client):
    assert client.post("/api/settings", json={"form": {"prompt": "x"}, "history": ["a"]}).json()["form"] == {"prompt": "x"}
    assert client.get("/api/settings").json()["history"] == ["a"]
    assert client.post("/api/settings", json={"history": None}).json()["history"] is None


def test_prompts_plans_and_models_are_explained(client):
    report = client.post("/api/prompt", json={"prompt": "a (red:1.2) apple"}).json()
    assert (report["words"], report["tokens"], report["error"]) == (["a", "red", "apple"], 3, None)
    assert client.post("/api/prompt", json={"prompt": "a (red:" + "9" * 30 + ") apple"}).json()["error"]["message"]
    plan = client.get("/api/plan", params={"request": json.dumps({"steps": 5, "sampler": "euler"})}).json()
    assert (plan["steps"], len(plan["sigmas"]), plan["width"], plan["memory"] > 0, plan["error"]) == (5, 6, 32, True, None)
    assert "multiple of 4" in client.post("/api/plan", json={"request": {"width": 30}}).json()["error"]
    assert client.get("/api/plan", params={"request": "{"}).status_code == 422
    models = client.get("/api/models").json()
    assert models["current"] == "tiny"
    assert {"name", "title", "family", "tasks", "sample_size"} <= set(models["models"][0])
    assert client.post("/api/models/select", json={"model": "emoji"}).json() == {"current": "emoji"}
    assert client.post("/api/models/select", json={"model": "tiny"}).json() == {"current": "tiny"}
    assert client.get("/api/samplers").json()["default"]["width"] == 32
    assert client.get("/readyz").json() == {"status": "ready"}
    assert "daguerre_jobs_queued 0" in client.get("/metrics").text
    assert client.get("/api/status").json()["model"] == "tiny"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_thumbnail_is_small(tmp_path, tiny_model):
    store = Store(tmp_path)
    image = fill(store, tiny_model).images[0]
    Image.new("RGB", (2000, 1000)).save(store.path("images", image))
    assert opened(thumbnail_of(store, image)).size == (256, 128)
    store.close()


def test_words_that_the_embedded_model_does_not_know_are_marked(client):
    assert client.get("/api/vocabulary").json() == {"model": "tiny", "words": None, "suggestions": []}
    client.post("/api/models/select", json={"model": "emoji"})
    vocabulary = client.get("/api/vocabulary").json()
    assert "apple" in vocabulary["words"]
    assert "a red apple" in vocabulary["suggestions"]
    (unknown,) = client.post("/api/prompt", json={"prompt": "A Zeppelin and a red apple"}).json()["unknown"]
    assert (unknown["word"], unknown["start"], unknown["end"]) == ("zeppelin", 2, 10)
    prompt = "(a red apple:1.35) [cat|dog] [cat:dog:0.25] BREAK a pizza :1.7 AND (an apple:13)"
    assert [word["word"] for word in client.post("/api/prompt", json={"prompt": prompt}).json()["unknown"]] == []
    client.post("/api/models/select", json={"model": "tiny"})


def test_numbers_that_json_lacks_come_back_as_null(client):
    body = '{"prompt": "x", "steps": 1, "odd": [NaN, {"a": -Infinity}]}'
    reply = client.post("/sdapi/v1/txt2img", content=body, headers={"Content-Type": "application/json"})
    assert reply.json()["parameters"]["odd"] == [None, {"a": None}]
