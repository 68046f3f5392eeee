"""Monitoring: whether the server lives and is ready, and its counters in the text format of Prometheus (version 0.0.4)."""

import threading

import torch
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from daguerre.runtime.memory_estimate import free_memory
from daguerre.server.errors import SafeJSONResponse
from daguerre.server.studio import Studio
from daguerre.version import VERSION


def health_routes(studio: Studio) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics` and `/api/status`."""
    routes = APIRouter(tags=["monitoring"])

    @routes.get("/healthz")
    async def healthz() -> Response:
        return SafeJSONResponse({"status": "ok"})

    @routes.get("/readyz")
    def readyz() -> Response:
        ready = studio.is_ready and studio.store.is_writable()
        return SafeJSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @routes.get("/metrics")
    def metrics() -> Response:
        return PlainTextResponse(metrics_text(studio), media_type="text/plain; version=0.0.4")

    @routes.get("/api/status")
    def status() -> Response:
        queue = studio.queue
        return SafeJSONResponse(
            {
                "version": VERSION,
                "model": studio.model,
                "loaded": studio.loaded,
                "device": ", ".join(worker.device for worker in studio.workers),
                "threads": torch.get_num_threads(),
                "paused": queue.paused,
                "queued": queue.count("queued"),
                "running": queue.count("running"),
                "memory": {"used": resident_bytes(), "free": free_memory()},
                "data_dir_warning": " ".join(studio.store.notes) or None,
                "started": studio.counters.started,
            }
        )

    return routes


def metrics_text(studio: Studio) -> str:
    """All counters and gauges."""
    queue = studio.queue
    lines = ["# TYPE daguerre_jobs_finished_total counter"]
    lines += [f'daguerre_jobs_finished_total{{state="{state}"}} {queue.finished[state]}' for state in ("done", "failed", "cancelled")]
    gauges = {
        "daguerre_jobs_queued": queue.count("queued"),
        "daguerre_jobs_running": queue.count("running"),
        "daguerre_queue_paused": int(queue.paused),
        "daguerre_ready": int(studio.is_ready),
        "daguerre_resident_bytes": resident_bytes(),
        "daguerre_threads": threading.active_count(),
    }
    for name, value in gauges.items():
        lines += [f"# TYPE {name} gauge", f"{name} {value}"]
    lines += ["# TYPE daguerre_requests_refused_total counter", f"daguerre_requests_refused_total {studio.counters.refused}"]
    return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Memory of this process in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0
