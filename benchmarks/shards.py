"""How long a large set of shards takes to open, and in how much memory. Writes synthetic shards, with one tiny image in all samples.

    python -m benchmarks.shards --images 1000000 --folder out/shards

Prints the seconds and the growth of the peak memory: of the first opening, which reads all headers; of the next one, from the kept index;
of the order of an epoch; and the samples per second that are read and decoded.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import time
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


def peak() -> float:
    """The largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path) -> None:
    """Open the shards in this process and print what it takes."""
    from daguerre.data import BatchLoader
    from daguerre.data.catalog import open_image_files

    before, start = peak(), time.perf_counter()
    source = open_image_files(folder, 64, captioned=True)
    print(f"opening {len(source)} images: {time.perf_counter() - start:.2f} s, {peak() - before:.0f} MB more")
    batches, start = BatchLoader(source, 64, 0), time.perf_counter()
    batches.batch(len(source) // 128)
    print(f"a batch in the middle of an epoch: {time.perf_counter() - start:.2f} s, {peak() - before:.0f} MB more than at the start")
    start = time.perf_counter()
    for step in range(20):
        batches.batch(step)
    print(f"reading: {20 * 64 / (time.perf_counter() - start):.0f} images per second in one thread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.folder)
        return
    write(options.folder / "shards", options.images)
    environment = {**os.environ, "XDG_CACHE_HOME": str(options.folder / "cache")}
    for kept in (options.folder / "cache").rglob("*.npz"):
        kept.unlink()
    for name in ("from the headers", "from the kept index"):
        print(name, flush=True)
        subprocess.run([sys.executable, __file__, "--measure", "--folder", str(options.folder / "shards")], env=environment, check=True)


if __name__ == "__main__":
    main()
