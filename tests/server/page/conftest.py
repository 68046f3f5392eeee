"""A running server with the embedded model and a browser that opens its page. Without Debian's Chromium these tests are skipped by name."""

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import pytest

CHROMIUM = shutil.which("chromium")
FIXTURES = Path(__file__).parents[2] / "fixtures"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 800}
TIMEOUT = 60_000  # milliseconds, for a loaded machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        folder = Path(__file__).parent
        for item in items:
            if folder in item.path.parents and "page" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=f"needs Chromium (apt-get install chromium): {item.name}"))


@dataclass(frozen=True)
class Server:
    """Where a server answers, and its data folder."""

    url: str
    folder: Path

    def call(self, path: str, body: object = None) -> Any:
        """GET a path, or POST JSON to it; the parsed answer."""
        data = None if body is None else json.dumps(body).encode()
        with urlopen(HttpRequest(self.url + path, data, {"Content-Type": "application/json"})) as answer:
            return json.loads(answer.read())

    def fetch(self, path: str) -> bytes:
        with urlopen(self.url + path) as answer:
            return answer.read()

    def generate(self, count: int = 1, **request: Any) -> list[dict[str, Any]]:
        """Images of a request with few steps, without the page."""
        seen = {image["id"] for image in self.images()}
        for seed in range(count):
            self.call("/api/jobs", {"request": {"prompt": "a red apple", "steps": 3, "seed": seed, **request}})
        self.wait(lambda: len({image["id"] for image in self.images()} - seen) >= count)
        return [image for image in self.images() if image["id"] not in seen]

    def images(self) -> list[dict[str, Any]]:
        return self.call("/api/images?limit=200")["images"]

    def wait(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + TIMEOUT / 1000
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError("the server did not get there in time")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in a thread of this process, with its own folder, which all tests share: the model is loaded once."""
    import uvicorn

    from daguerre.server.app import create_app
    from daguerre.server.config import ServerConfig
    from daguerre.server.studio import Studio

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    studio = Studio(ServerConfig(data=tmp_path_factory.mktemp("studio"), port=port), ["cpu"])
    running = uvicorn.Server(uvicorn.Config(create_app(studio), port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    server = Server(f"http://127.0.0.1:{port}", studio.store.folder)
    server.wait(lambda: running.started)
    assert studio.workers[0].ready.wait(TIMEOUT / 1000)
    yield server
    running.should_exit = True
    thread.join(20)


@pytest.fixture(scope="session")
def apple(server: Server) -> dict[str, Any]:
    """An image of the gallery, for tests to open."""
    return server.generate(prompt="a red apple", seed=5)[0]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def problems() -> list[str]:
    """What went wrong in the pages of a test: scripts that failed, and what the policy blocked."""
    return []


@pytest.fixture(scope="session")
def new_page(browser: Any, server: Server, problems: list[str]) -> Callable[..., Any]:
    """Open a page without content in a fresh browser profile."""

    def new(**settings: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-US", "reduced_motion": "reduce", **settings})
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(error.stack or str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Content Security Policy" in message.text else None)
        allowed = re.compile(rf"{server.url}/|data:|blob:")
        page.on("request", lambda request: None if allowed.match(request.url) else problems.append(request.url))
        return page

    return new


@pytest.fixture(scope="session")
def desktop(new_page: Callable[..., Any]) -> Any:
    """A page that many tests use, one after the other: a fresh profile for each would take seconds."""
    return new_page()


@pytest.fixture
def open_page(new_page: Callable[..., Any], desktop: Any, server: Server, problems: list[str]) -> Iterator[Callable[..., Any]]:
    """Open the studio with settings as at the first start: on the desktop page, or in a profile with other settings.

    At the end no script may have failed and nothing may have been blocked.
    """
    others = []

    def open_(path: str = "/", **settings: Any) -> Any:
        page = new_page(**settings) if settings else desktop
        others.extend([page] if settings else [])
        page.goto(server.url + path)
        page.wait_for_selector(".node, .galleryview")
        return page

    desktop.goto(f"{server.url}/healthz")  # leaving the studio stores its settings
    desktop.evaluate("localStorage.clear(); sessionStorage.clear()")  # masks, and settings that were not saved in time
    server.call("/api/queue/pause", {"paused": False})
    server.call("/api/settings", dict.fromkeys(("form", "presets", "history", "language", "theme", "layout")))
    problems.clear()
    yield open_
    desktop.unroute_all()
    desktop.context.set_offline(False)
    for page in others:
        page.context.close()
    assert problems == []


@pytest.fixture
def until() -> Callable[[Any, str], Any]:
    """Wait for a JavaScript expression to be true; Playwright's own waiting needs `eval`, which the page's policy forbids."""

    def wait(page: Any, expression: str) -> Any:
        end = time.monotonic() + TIMEOUT / 1000
        while time.monotonic() < end:
            if found := page.evaluate(f"() => ({expression})"):
                return found
            page.wait_for_timeout(40)
        raise AssertionError(f"not true in time: {expression}")

    return wait


@pytest.fixture
def refused_requests() -> Callable[[Any], list[dict[str, Any]]]:
    """Refuse the new jobs of a page from now on; the list collects their requests."""

    def refuse(page: Any) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        def answer(route: Any) -> None:
            if route.request.method == "POST":
                sent.append(route.request.post_data_json["request"])
                route.fulfill(
                    status=422, json={"error": {"message": "refused", "type": "invalid_request_error", "param": None, "code": "x"}}
                )
            else:
                route.continue_()

        page.route("**/api/jobs", answer)
        return sent

    return refuse


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    """The page on a desktop."""
    return open_page()
