"""Run a server until it is asked to stop: SIGTERM and Ctrl-C finish the running job, and everything else is kept."""

import threading
from types import FrameType

import torch
import uvicorn

from daguerre.runtime.engines import engine_by_name
from daguerre.server.app import create_app
from daguerre.server.config import ServerConfig, check_address
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


def serve(config: ServerConfig) -> None:
    """Serve until a signal ends it.

    Raises:
        DaguerreError: the address, the data folder or the engine cannot be used, or there is no such model.
    """
    check_address(config)
    devices = serving_devices()
    engine_by_name(config.engine, torch.device(devices[0]))
    studio = Studio(config, devices)
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
