"""Run a server until it is asked to stop: SIGTERM and Ctrl-C finish the running job, and everything else is kept."""

import errno
import socket
import threading
from types import FrameType

import uvicorn

from daguerre.errors import DaguerreError
from daguerre.server.app import create_app
from daguerre.server.config import LOOPBACK, ServerConfig
from daguerre.server.model_loading import serving_devices
from daguerre.server.studio import Studio

DRAIN_LIMIT = 600  # seconds that a stopping server waits for its callers


class DrainingServer(uvicorn.Server):
    """A server that drains its queue at the first signal; at the second it ends at once."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self._studio = studio

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        # In a thread, because the signal may have interrupted code that holds the locks.
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        self._studio.drain()
        for worker in self._studio.workers:
            worker.join()
        self._studio.events.close()  # ends the streams, which uvicorn waits for


def check_address(config: ServerConfig) -> None:
    """Check that the server may listen at its address, and that the port is free.

    Raises:
        DaguerreError: another machine could reach it without a token, or the port is taken.
    """
    if config.host not in LOOPBACK and not config.token:
        raise DaguerreError(
            f"--host {config.host} is open to other machines, so it needs a token. Add --token with a long random text, or use "
            "--host 127.0.0.1."
        )
    try:
        with socket.create_server((config.host, config.port), family=socket.AF_INET6 if ":" in config.host else socket.AF_INET):
            pass
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use by another program; choose another one with --port" if taken else f"cannot be used: {error.strerror or error}"
        raise DaguerreError(f"The port {config.port} of {config.host} {reason}.") from error


def serve(config: ServerConfig) -> None:
    """Serve until a signal ends it.

    Raises:
        DaguerreError: the address or the data folder cannot be used, or there is no such model.
    """
    check_address(config)
    studio = Studio(config, serving_devices())
    for note in studio.store.notes:
        print(f"daguerre: {note}")
    host = f"[{config.host}]" if ":" in config.host else config.host
    print(f"Daguerre is at http://{host}:{config.port}/  (Ctrl-C stops it; images are in {config.data})", flush=True)
    settings = uvicorn.Config(
        create_app(studio),
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_LIMIT,
        h11_max_incomplete_event_size=1 << 16,
    )
    server = DrainingServer(settings, studio)
    server.run()
