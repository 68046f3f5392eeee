"""The guard: who is answered, from which page, with what body; and that nothing a caller sends reaches a file, a network or a script."""

import base64
import re
import socket
import struct
import zlib
from dataclasses import replace
from io import BytesIO

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from daguerre.errors import DaguerreError
from daguerre.server.app import create_app
from daguerre.server.config import Limits, ServerConfig, check_address
from daguerre.server.guard import Guard, host_name
from daguerre.server.messages import without_local_paths
from daguerre.server.studio import Studio
from tests.server.conftest import ADDRESS, base64_png, png, sample_image

JSON = {"Content-Type": "application/json"}


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def guarded(**changes) -> TestClient:
    """The guard alone before an application that answers everything."""
    return TestClient(Guard(hello, replace(ServerConfig("unused"), **changes), lambda: None), base_url=ADDRESS)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"Origin": ADDRESS}, 200),
        ({"Origin": ADDRESS.upper()}, 200),
        ({"Host": "LOCALHOST:7860", "Origin": "http://localhost:7860"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "NULL"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "http://127.0.0.1:7860.evil.example"}, 403),
        ({"Origin": "file://"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "Cross-Site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),  # a link to the page
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:7860"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1:x"}, 403),
        ({"Host": "[::1]:7860"}, 200),
    ],
)
def test_only_programs_and_our_own_page_are_answered(headers, status):
    reply = guarded().get("/api/jobs", headers=headers)
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers


def test_forged_posts_are_refused_and_those_of_programs_pass():
    client = guarded()
    assert client.post("/sdapi/v1/interrupt").status_code == 200  # without a body and without Origin
    forged = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.post("/sdapi/v1/interrupt", headers=forged).status_code == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert client.post("/api/jobs", content=b"{}", headers={"Content-Type": kind}).status_code == 415
    assert client.post("/v1/images/edits", content=b"{}", headers={"Content-Type": "multipart/form-data; boundary=x"}).status_code == 200
    assert client.options("/api/jobs", headers={"Origin": "http://evil.example"}).status_code == 403


def test_every_answer_has_the_security_headers():
    for reply in (guarded().get("/x"), guarded().get("/x", headers={"Host": "evil.example"})):
        assert reply.headers["x-content-type-options"] == "nosniff"
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Basic " + base64.b64encode(b"anyone:secret").decode(), 200),
        ("Basic " + base64.b64encode(b"secret").decode(), 401),
        ("Basic ???", 401),
        ("Bearer secre", 401),
        ("secret", 401),
        ("", 401),
        (None, 401),
    ],
)
def test_a_token_is_needed_where_one_is_set(given, status):
    reply = guarded(token="secret").get("/api/jobs", headers={} if given is None else {"Authorization": given})
    assert reply.status_code == status
    assert ("www-authenticate" in reply.headers) == (status == 401)


def test_the_token_does_not_stand_before_the_health_check():
    assert guarded(token="secret").get("/healthz").status_code == 200


def test_without_a_token_an_empty_authorization_passes():
    assert guarded().get("/api/jobs", headers={"Authorization": ""}).status_code == 200


def test_other_addresses_need_a_token(tmp_path):
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(DaguerreError, match="needs a token"):
            check_address(ServerConfig(tmp_path, host=host))


def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(DaguerreError, match="in use by another program"):
        check_address(ServerConfig(tmp_path, port=taken.getsockname()[1]))


def test_a_server_for_other_machines_knows_addresses_but_no_foreign_names():
    client = guarded(host="0.0.0.0", token="secret")
    for host, status in (("192.0.2.7:7860", 200), ("localhost", 200), ("rebound.example", 403)):
        assert client.get("/", headers={"Host": host, "Authorization": "Bearer secret"}).status_code == status


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_host_header_gives_a_name_or_nothing(text):
    name = host_name(text)
    assert not set(name) & set("/\\@?#% ")


def test_bodies_are_bounded_before_they_are_parsed():
    client = guarded(limits=Limits(body=1000))
    assert client.post("/api/jobs", content=b"x" * 1001, headers=JSON).status_code == 413
    assert client.post("/api/jobs", content=b"{}", headers={**JSON, "Content-Length": "-1"}).status_code == 400
    assert client.post("/api/jobs", content=b"{}", headers={**JSON, "Content-Length": "9" * 5000}).status_code == 413


def test_a_body_of_unknown_length_is_bounded(config, tmp_path):
    studio = Studio(replace(config, data=tmp_path, limits=Limits(body=1000)), [])
    client = TestClient(create_app(studio), base_url=ADDRESS)  # not started: nothing runs
    reply = client.post("/api/jobs", content=iter([b"x" * 600] * 3), headers=JSON)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
    studio.close()


PATHS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["..", "%2e%2e", "%5c", "\\", "/", "%00", "etc", "passwd", "C:", "//host/share", "~", "."]), max_size=8).map(
        "/".join
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATHS)
def test_no_path_leads_out_of_the_folders(client, path):
    for prefix in ("/web/", "/api/images/", "/api/inputs/", "/"):
        try:
            reply = client.get(f"{prefix}{path}")
        except (ValueError, UnicodeError, httpx2.InvalidURL):  # the client itself refuses the address
            continue
        assert reply.status_code in (200, 404, 405, 422, 403)
        assert b"root:" not in reply.content
        assert "location" not in reply.headers  # no redirects
        if reply.status_code == 200:
            assert reply.headers["content-type"].startswith(("text/html", "application/json", "text/plain", "text/javascript"))


def test_ids_that_are_not_ours_are_not_found(client, studio):
    secret = studio.store.folder / "secret.png"
    secret.write_bytes(png(sample_image()))
    for name in ("../secret", "..%2fsecret", "/etc/passwd", "", "0" * 16, "\\\\host\\x"):
        task = {"name": "img2img", "image": {"id": name}}
        assert client.post("/api/jobs", json={"request": {"task": task}}).status_code in (404, 422)
    secret.unlink()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header states a size that its data does not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb() -> bytes:
    """A PNG with a compressed text of 200 MB."""
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 200_000_000, 1))
    return png(sample_image(), pnginfo=info)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (bomb(60_000, 60_000), 413),
        (bomb(2**31 - 1, 2**31 - 1), 413),
        (bomb(0, 0), 400),
        (bomb(64, 64), 400),
        (png(sample_image())[:-30], 400),
        (b"", 400),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 400),
        (b"<!doctype html><script>alert(1)</script>", 400),
        (b"GIF89a" + bytes(100), 400),
        (b"\x80\x04cos\nsystem\n.", 400),
        (text_bomb(), 400),
    ],
    ids=["huge", "larger", "empty", "short", "truncated", "nothing", "svg", "html", "gif", "pickle", "text"],
)
def test_uploads_are_images_of_three_formats_within_limits(client, data, status):
    reply = client.post("/api/inputs", json={"image": base64.b64encode(data).decode()})
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "PPM", "ICO"])
def test_other_formats_are_refused(client, kind):
    file = BytesIO()
    sample_image().save(file, kind)
    assert client.post("/api/inputs", json={"image": base64.b64encode(file.getvalue()).decode()}).status_code == 400


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/x.png", "HTTPS://example.com/x.png", "file:///etc/passwd", " http://x", "ftp://x/y"]
)
def test_no_address_is_fetched(client, address, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was made"))
    assert client.post("/api/inputs", json={"image": address}).status_code == 400
    assert client.post("/sdapi/v1/img2img", json={"init_images": [address]}).status_code == 400
    assert client.post("/sdapi/v1/png-info", json={"image": address}).status_code == 400


def test_an_upload_is_written_again_without_its_metadata(client, studio):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "<script>alert(1)</script>")
    data = base64.b64encode(png(sample_image(), pnginfo=info)).decode()
    kept = client.post("/api/inputs", json={"image": data}).json()
    stored = client.get(f"/api/inputs/{kept['id']}").content
    assert b"script" not in stored
    assert Image.open(BytesIO(stored)).tobytes() == sample_image().tobytes()
    dropped = client.post("/sdapi/v1/png-info", json={"image": data})
    assert dropped.headers["content-type"] == "application/json"  # shown as text, never as a page
    assert dropped.headers["x-content-type-options"] == "nosniff"


def test_images_are_sent_with_their_own_type_only(client, run_job):
    image_id = run_job({"prompt": "<script>alert(1)</script>"})["images"][0]
    for query, kind in (("", "png"), ("?format=webp", "webp"), ("?format=jpeg", "jpeg")):
        assert client.get(f"/api/images/{image_id}{query}").headers["content-type"] == f"image/{kind}"
    assert client.get(f"/api/images/{image_id}?format=svg").status_code == 422
    assert "text/html" not in client.get(f"/api/images/{image_id}/info").headers["content-type"]


def test_ranges_are_not_read(client, run_job):
    many = "bytes=" + ",".join(f"{i}-{i}" for i in range(5000))
    for path in ("/web/app.js", f"/api/images/{run_job({'steps': 1})['images'][0]}"):
        whole = client.get(path)
        for value in ("bytes=0-3", many):
            reply = client.get(path, headers={"Range": value})
            assert (reply.status_code, reply.content) == (200, whole.content)


def test_there_is_no_way_to_upload_a_model_or_to_name_a_file(client, tmp_path):
    routes = client.get("/openapi.json").json()["paths"]
    assert not [path for path in routes if re.search("upload|install|train|file", path)]
    model = tmp_path / "other.safetensors"
    model.write_bytes(b"x")
    for name in (str(model), "../other", "file://x", "someone/something"):
        assert client.post("/api/models/select", json={"model": name}).status_code == 404
        assert client.post("/api/jobs", json={"model": name}).status_code == 404
        assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": name}).status_code == 404


def test_options_and_settings_are_fixed_lists(client):
    for body in (
        {"outdir_samples": "/tmp"},
        {"samples_format": "exe"},
        {"sd_model_checkpoint": "tiny\r\nX: y"},
        {"CLIP_stop_at_last_layers": 99},
    ):
        assert client.post("/sdapi/v1/options", json=body).status_code == 422
    assert client.post("/api/settings", json={"data_dir": "/"}).status_code == 422
    assert client.post("/api/settings", json={"form": "x" * 300_000}).status_code == 413


def test_no_local_path_is_sent(client, studio, run_job, tiny_folder):
    image = client.get(f"/api/images/{run_job({'prompt': 'x'})['images'][0]}").content
    texts = [image.decode("latin-1")]
    listed = [
        path
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        if "get" in methods and "{" not in path and "events" not in path
    ]
    texts += [client.get(path).text for path in listed]
    for place in (str(tiny_folder.parent), str(studio.store.folder)):
        assert not [text[:200] for text in texts if place in text]


def test_paths_are_removed_from_messages():
    text = without_local_paths("Cannot read '/home/me/models/x y.safetensors': gone; see ~/notes/a.txt and a/b, 3/4 or http://x/y.")
    assert text == "Cannot read 'x y.safetensors': gone; see a.txt and a/b, 3/4 or http://x/y."


def test_repeated_headers_are_refused():
    reply = guarded().get("/", headers=[("Host", "127.0.0.1:7860"), ("Host", "evil.example")])
    assert reply.status_code in (400, 403)


def test_deep_or_strange_json_is_a_client_error(client):
    for body in (b'{"request": {"prompt": "\\ud800"}}', b"\xff\xfe", b'{"request": ' + b'{"a":' * 50_000, b'{"request": {"seed": 1e999}}'):
        reply = client.post("/api/jobs", content=body, headers=JSON)
        assert 400 <= reply.status_code < 500
        assert reply.json()["error"]["message"]


def test_base64_images_may_have_a_prefix_blanks_and_breaks(client):
    text = base64_png(sample_image())
    for sent in (text, f"data:image/png;base64,{text}", f"data:image/png;base64, {text}", f"{text[:40]}\n{text[40:]}"):
        assert client.post("/api/inputs", json={"image": sent}).status_code == 200
