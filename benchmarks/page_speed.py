"""Size and speed of the server's page in Chromium: `python -m benchmarks.page_speed [IMAGES] [RUNS]`.

    bytes          scripts and styles of the page, as they are transferred (gzip) and as they are
    interactive    milliseconds from the start of the navigation until prompt and button are there and take input; median
    gallery        milliseconds until the thumbnails of a gallery of 10,000 images are shown; median

The server is a process of its own on a free port of this machine, with a gallery of copies of one image.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import daguerre
from benchmarks.server_load import start
from daguerre.pipelines.metadata.write import write_image_with_metadata
from daguerre.server.jobs.job import Job
from daguerre.server.storage.image_records import record_of
from daguerre.server.storage.store import Store

# Runs before the page's scripts: notes when an expression about the document is first true after a frame.
WATCH = """
const ready = {interactive: () => document.getElementById("go") && document.getElementById("f-prompt"), gallery: () => {
    const images = [...document.querySelectorAll("#gallery img")];
    return images.length > 20 && images.filter((each) => each.complete && each.naturalWidth).length > 20;
}};
window.seen = {};
const look = () => {
    for (const [name, test] of Object.entries(ready)) if (!(name in seen) && test()) seen[name] = performance.now();
    requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
SIZES = """() => performance.getEntriesByType("resource").filter((each) => /(js|css)$/.test(each.name))
    .reduce(([sent, whole], each) => [sent + each.encodedBodySize, whole + each.decodedBodySize], [0, 0])"""


def fill(folder: Path, count: int) -> None:
    """A gallery of so many images, which share the content of one file."""
    model = daguerre.load()
    generated = daguerre.generate(model, "a red apple", steps=2)[0]
    store = Store(folder)
    job = Job(request={}, model=model.name, state="done", finished=time.time())
    record = record_of("0" * 16 + "-0", job.id, time.time(), generated.image.size, generated.provenance)
    first = store.path("images", record.id)
    with first.open("wb") as file:
        write_image_with_metadata(file, generated.image, ".png", generated.provenance)
    records = [replace(record, id=f"{number:016x}-0") for number in range(count)]
    for each in records[1:]:
        os.link(first, store.path("images", each.id))
    store.save_images(job, records)
    store.close()


def measure(browser: Any, address: str, name: str, runs: int) -> tuple[float, list[int]]:
    """(median milliseconds until `name` of WATCH holds, [bytes sent, bytes]). Each run is a new profile, after one that warms up."""
    times, sizes = [], [0, 0]
    for number in range(runs + 1):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.add_init_script(WATCH)
        page.goto(address)
        while not (seen := page.evaluate(f"() => window.seen.{name}")):
            page.wait_for_timeout(20)
        sizes = page.evaluate(SIZES)
        times += [seen] if number else []
        context.close()
    return statistics.median(times), sizes


def main() -> None:
    from playwright.sync_api import sync_playwright

    count, runs = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 10_000), (2, 5)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        fill(Path(folder), count)
        process, address = start(folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        interactive, (sent, whole) = measure(browser, f"{address}/", "interactive", runs)
        gallery, _ = measure(browser, f"{address}/#gallery", "gallery", runs)
        browser.close()
        process.terminate()
        process.wait()
    result = {"images": count, "bytes_sent": sent, "bytes": whole, "interactive_ms": round(interactive), "gallery_ms": round(gallery)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
