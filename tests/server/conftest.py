"""A studio on the tiny model: in this process behind a test client, or behind a real socket."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

import daguerre
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.server.app import create_app
from daguerre.server.config import ServerConfig
from daguerre.server.studio import Studio

ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="session")
def tiny_folder(tiny_model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return daguerre.save(tiny_model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def config(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return ServerConfig(tmp_path_factory.mktemp("studio"), model=str(tiny_folder))


@pytest.fixture(scope="module")
def studio(config: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A studio that is started by `client` or `address`; each module has its own folder."""
    return Studio(replace(config, data=tmp_path_factory.mktemp("data")), ["cpu"])


@pytest.fixture(scope="module")
def client(studio: Studio) -> Iterator[TestClient]:
    """Calls the application in this process, as a program does: without Origin."""
    with TestClient(create_app(studio), base_url=ADDRESS) as client:
        assert studio.workers[0].ready.wait(60)
        yield client


@pytest.fixture(scope="module")
def address(studio: Studio) -> Iterator[str]:
    """The address of a real server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(studio), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert studio.workers[0].ready.wait(60)
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def run_job(client: TestClient) -> Callable[..., dict[str, Any]]:
    """Queue a request and wait for its end: the finished job."""

    def run_(request: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
        reply = client.post("/api/jobs", json={"request": {"steps": 2, **(request or {})}, **body})
        assert reply.status_code == 202, reply.text
        return finished(client, reply.json()["id"])

    return run_


def finished(client: TestClient, job_id: str, seconds: float = 60) -> dict[str, Any]:
    """A job once it has ended."""
    until = time.monotonic() + seconds
    while (job := client.get(f"/api/jobs/{job_id}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < until, job
        time.sleep(0.01)
    return job


def sample_image(size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    """An image with a shape, so that every byte outside a mask can be compared."""
    image = Image.new("RGB", size, "teal")
    ImageDraw.Draw(image).ellipse((4, 4, size[0] // 2, size[1] // 2), fill="orange")
    if mode == "RGBA":
        image = image.convert("RGBA")
        image.paste((0, 0, 0, 0), (size[0] // 2, 0, size[0], size[1]))
    return image


def png(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def base64_png(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def opened(data: bytes | str) -> Image.Image:
    """An image of bytes or base64."""
    return Image.open(BytesIO(base64.b64decode(data) if isinstance(data, str) else data))
