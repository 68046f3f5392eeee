"""A real server process: killed at any moment it comes back with its gallery whole and its queue going on; SIGTERM drains it."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from daguerre.pipelines.metadata.write import read_provenance

STEPS = 5


class Server:
    """A process of `daguerre serve` on a free port."""

    def __init__(self, model: Path, data: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "daguerre", "serve", f"--port={self.port}", f"--model={model}", f"--data-dir={data}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        until = time.monotonic() + 300
        while True:
            try:
                if self.http.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.05)

    def submit(self, count: int) -> list[str]:
        """Submit jobs; the ids of those that the queue took."""
        bodies = ({"request": {"prompt": f"apple {i}", "seed": i, "steps": STEPS, "num_images": 2}} for i in range(count))
        replies = [self.http.post("/api/jobs", json=body) for body in bodies]
        return [reply.json()["id"] for reply in replies if reply.status_code == 202]

    def states(self) -> dict[str, str]:
        return {job["id"]: job["state"] for job in self.http.get("/api/jobs").json()["jobs"]}

    def wait_for_all(self, jobs: list[str]) -> None:
        until = time.monotonic() + 900  # for a loaded machine
        while any(self.states().get(job) != "done" for job in jobs):
            assert time.monotonic() < until, self.states()
            time.sleep(0.05)

    def images(self) -> list[dict]:
        return self.http.get("/api/images?limit=1000").json()["images"]

    def end(self, how: signal.Signals) -> int:
        self.http.close()
        self.process.send_signal(how)
        return self.process.wait(120)


def check_consistent(data: Path, images: list[dict], jobs: list[str]) -> None:
    """Every listed image has a complete file, and every file is listed, once."""
    ids = [image["id"] for image in images]
    assert len(ids) == len(set(ids))
    for image_id in ids:
        read_provenance(data / "images" / f"{image_id}.png")
    assert not list(data.glob("studio.damaged*"))
    finished = {f"{job}-{i}" for job in jobs for i in range(2)}
    assert set(ids) <= finished


def test_kill_and_restart(tiny_folder, tmp_path):
    server = Server(tiny_folder, tmp_path)
    jobs = server.submit(3)
    while not server.images():
        time.sleep(0.005)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL

    server = Server(tiny_folder, tmp_path)
    check_consistent(tmp_path, server.images(), jobs)
    server.wait_for_all(jobs)
    check_consistent(tmp_path, server.images(), jobs)
    assert {image["id"] for image in server.images()} == {f"{job}-{i}" for job in jobs for i in range(2)}
    assert [image["prompt"] for image in server.images()][::-2] == [f"apple {i}" for i in range(3)]

    # SIGTERM: the running job is finished, the queued one stays.
    first = server.http.post("/api/jobs", json={"request": {"prompt": "x", "steps": 150}}).json()["id"]
    second = server.submit(1)[0]
    while server.states()[first] != "running":
        time.sleep(0.005)
    assert server.end(signal.SIGTERM) == 0
    output = server.process.communicate()[0]
    assert "Traceback" not in output
    assert (tmp_path / "images" / f"{first}-0.png").exists()
    assert (tmp_path / "queue" / f"{second}.json").exists()


@pytest.mark.long
def test_kill_at_thirty_random_moments(tiny_folder, tmp_path):
    chosen = random.Random(0)
    jobs: list[str] = []
    for _ in range(30):
        server = Server(tiny_folder, tmp_path)
        check_consistent(tmp_path, server.images(), jobs)
        known = set(server.states())
        assert set(jobs[-10:]) <= known  # no job is lost
        jobs += server.submit(3)
        time.sleep(chosen.random() * 0.5)
        server.end(signal.SIGKILL)
    server = Server(tiny_folder, tmp_path)
    server.wait_for_all(jobs[-40:])
    check_consistent(tmp_path, server.images(), jobs)
    assert {image["id"] for image in server.images()} == {f"{job}-{i}" for job in jobs for i in range(2)}
    assert server.end(signal.SIGTERM) == 0
