"""Load and speed of the server on the embedded model: `python -m benchmarks.server_load [JOBS]`.

    overhead    time of a request to its image, relative to the library call, alternating
    preview     the step that the first preview shows, and how long after the call it arrives, in steps
    load        50 callers submit jobs; none is lost, none runs twice, previews stay with their jobs
    refusals    time of the answer 429 while the queue is full: median and 99th percentile
    memory      of the process after the load, relative to before; of an idle server, relative to the library alone, each with the model
                loaded, before and after one image

The server is a process of its own on a free port of this machine.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import httpx2

STEPS = 4
CALLERS = 50


def resident(pid: int) -> int:
    """Memory of a process in bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def start(folder: str) -> tuple[subprocess.Popen, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "daguerre", "serve", f"--port={port}", f"--data-dir={folder}"], stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            if httpx2.get(f"{address}/readyz").status_code == 200:
                return process, address
        except httpx2.TransportError:
            pass
        time.sleep(0.2)


def overhead(address: str, pairs: int = 5) -> dict[str, float]:
    """Seconds of a warm request to its image and of the library call, alternating; the ratio of the medians."""
    import daguerre

    model = daguerre.load()
    request = {"prompt": "a red apple", "steps": 20, "seed": 1}
    server, library = [], []
    with httpx2.Client(timeout=600) as http:
        for number in range(pairs + 1):
            started = time.monotonic()
            http.post(f"{address}/sdapi/v1/txt2img", json={**request, "cfg_scale": 2.0}).raise_for_status()
            served = time.monotonic()
            daguerre.generate(model, **request, guidance_scale=2.0)
            if number:  # the first pair warms up
                server.append(served - started)
                library.append(time.monotonic() - served)
    medians = statistics.median(server), statistics.median(library)
    return {"server_seconds": medians[0], "library_seconds": medians[1], "ratio": medians[0] / medians[1]}


def first_preview(address: str, steps: int = 20) -> dict[str, float]:
    """When the first preview of a warm run arrives."""
    with httpx2.Client(timeout=600) as http:
        started = time.monotonic()
        job = http.post(f"{address}/api/jobs", json={"request": {"prompt": "a red apple", "steps": steps, "seed": 1}}).json()["id"]
        seen: list[tuple[int, float]] = []
        with http.stream("GET", f"{address}/api/jobs/{job}/events") as stream:
            for line in stream.iter_lines():
                event = json.loads(line[6:]) if line.startswith("data: ") else {}
                if event.get("preview"):
                    seen.append((event["step"], time.monotonic() - started))
    one_step = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
    return {"first_preview_step": seen[0][0], "first_preview_after_steps": seen[0][1] / one_step}


def load(address: str, count: int) -> dict[str, float]:
    """Submit jobs from many callers until all are accepted, and follow all events."""
    refusals: list[float] = []
    accepted: dict[str, str] = {}
    previews: dict[str, list[int]] = {}
    lock, numbers = threading.Lock(), iter(range(count))

    def follow() -> None:
        with httpx2.stream("GET", f"{address}/api/events", timeout=None) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: ") and '"step":' in line:
                    event = json.loads(line[6:])
                    if event.get("job") and "step" in event:
                        previews.setdefault(event["job"], []).append(event["step"])

    def call() -> None:
        with httpx2.Client(timeout=600) as http:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                body = {"request": {"prompt": f"a red apple {number}", "steps": STEPS, "seed": number}}
                while True:
                    started = time.monotonic()
                    reply = http.post(f"{address}/api/jobs", json=body)
                    if reply.status_code == 202:
                        with lock:
                            accepted[reply.json()["id"]] = body["request"]["prompt"]
                        break
                    with lock:
                        refusals.append(time.monotonic() - started)
                    time.sleep(0.5)

    threading.Thread(target=follow, daemon=True).start()
    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    while any(job["state"] in ("queued", "running") for job in httpx2.get(f"{address}/api/jobs", timeout=600).json()["jobs"]):
        time.sleep(0.5)
    images = httpx2.get(f"{address}/api/images?limit=1000", timeout=600).json()["images"]
    prompts = {image["job"]: image["prompt"] for image in images if image["job"] in accepted}
    refusals.sort()
    return {
        "jobs": len(accepted),
        "images": sum(image["job"] in accepted for image in images),
        "lost": len(accepted.keys() - prompts.keys()),
        "with_wrong_prompt": sum(prompts.get(job) != prompt for job, prompt in accepted.items()),
        "jobs_with_wrong_steps": sum(steps != [*range(1, STEPS + 1)] for job, steps in previews.items() if job in accepted),
        "refusals": len(refusals),
        "refusal_median_ms": 1000 * statistics.median(refusals) if refusals else 0.0,
        "refusal_p99_ms": 1000 * refusals[int(0.99 * len(refusals))] if refusals else 0.0,
    }


def library_memory() -> list[int]:
    """Memory of a process with the library and the embedded model alone: once it is loaded, and after one image."""
    code = (
        "import daguerre; read = lambda: print(open('/proc/self/statm').read().split()[1]); "
        "model = daguerre.load(); read(); daguerre.generate(model, 'a red apple', steps=2); read()"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [int(pages) * 4096 for pages in output.split()]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(folder)
        idle = resident(process.pid)
        httpx2.post(f"{address}/sdapi/v1/txt2img", json={"prompt": "a red apple", "steps": 2}, timeout=600).raise_for_status()
        idle_after_image = resident(process.pid)
        times = {**overhead(address), **first_preview(address)}
        before = resident(process.pid)
        result = load(address, count)
        time.sleep(5)
        after = resident(process.pid)
        process.terminate()
        process.wait()
    library = library_memory()
    memory = {
        "idle_mb": idle / 1e6,
        "idle_relative_to_library": idle / library[0],
        "idle_after_an_image_relative_to_library": idle_after_image / library[1],
        "after_load_relative_to_before": after / before,
        "after_load_mb": after / 1e6,
    }
    print(json.dumps({"threads": os.environ.get("OMP_NUM_THREADS"), **times, **result, **memory}, indent=1))


if __name__ == "__main__":
    main()
