"""How long a large set of shards takes to open, and in how much memory. Writes synthetic shards, with one tiny image in all samples.

    python -m benchmarks.shards --images 1000000 --folder out/shards

Prints the seconds and the growth of the peak memory: of the first opening, which reads all headers; of the next one, from the kept index;
of one from a local server, whose shards are fetched when they are needed; of the order of an epoch; and the samples per second that are
read and decoded.
"""

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PER_SHARD = 10_000


def write(folder: Path, images: int) -> None:
    """Shards with pairs of a JPEG and a caption."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(content, "JPEG")
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, images, PER_SHARD):
        path = folder / f"{first // PER_SHARD:06d}.tar"
        if path.exists():
            continue
        with tarfile.open(path.with_suffix(".part"), "w") as tar:
            for number in range(first, min(first + PER_SHARD, images)):
                for suffix, data in ((".jpg", content.getvalue()), (".txt", f"image number {number}".encode())):
                    entry = tarfile.TarInfo(f"{number:09d}{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        path.with_suffix(".part").rename(path)


def write_index(folder: Path) -> None:
    """The files with which `daguerre shard` describes shards."""
    from daguerre.data.shards.index import write_members
    from daguerre.data.shards.remote import SHARD_FORMAT, SHARD_INDEX, SHARD_MEMBERS

    def described(path: Path) -> dict[str, str | int]:
        with path.open("rb") as file:
            return {"name": path.name, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    files, members = sorted(folder.glob("*.tar")), folder / SHARD_MEMBERS
    record = {"format": SHARD_FORMAT, "shards": [described(file) for file in files]}
    write_members(members, files, record)
    (folder / SHARD_INDEX).write_text(json.dumps({**record, "members": described(members)}))


def peak() -> float:
    """The largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(data: str) -> None:
    """Open the shards in this process and print what it takes."""
    from daguerre.data import BatchLoader
    from daguerre.data.catalog import open_image_files

    before, start = peak(), time.perf_counter()
    source = open_image_files(data, 64, captioned=True)
    print(f"opening {len(source)} images: {time.perf_counter() - start:.2f} s, {peak() - before:.0f} MB more")
    batches, start = BatchLoader(source, 64, 0), time.perf_counter()
    batches.batch(len(source) // 128)
    print(f"a batch in the middle of an epoch: {time.perf_counter() - start:.2f} s, {peak() - before:.0f} MB more than at the start")
    start = time.perf_counter()
    for step in range(20):
        batches.batch(step)
    print(f"reading: {20 * 64 / (time.perf_counter() - start):.0f} images per second in one thread")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    write(options.folder / "shards", options.images)
    environment = {**os.environ, "XDG_CACHE_HOME": str(options.folder / "cache")}
    for kept in (options.folder / "cache").rglob("*.npz"):
        kept.unlink()

    def run(name: str, data: str) -> None:
        print(name, flush=True)
        subprocess.run([sys.executable, __file__, "--measure", data, "--folder", str(options.folder)], env=environment, check=True)

    shards = options.folder / "shards"
    for name in ("index.json", "members.npz"):
        (shards / name).unlink(missing_ok=True)
    run("from the headers", str(shards))
    run("from the kept index", str(shards))
    write_index(shards)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run("from a server", f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()


if __name__ == "__main__":
    main()
