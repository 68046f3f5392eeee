"""Shards at an address: fetched once, when they are needed, with the samples and the order of the shards in a folder."""

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.data import BatchLoader, FolderDataset
from daguerre.data.catalog import open_dataset, open_image_files
from daguerre.data.order import SHUFFLED_SHARDS
from daguerre.data.shards import fetch, remote
from daguerre.data.shards.fetch import FetchError, file_state
from daguerre.data.shards.index import image_sizes, open_index
from daguerre.data.shards.remote import find_remote
from daguerre.data.shards.write import ShardLimits, write_shards
from daguerre.errors import DaguerreError
from daguerre.training.run_identity import require_same

IMAGES = 40  # one in each shard, so that an epoch has several blocks


class Server(ThreadingHTTPServer):
    """Serves a folder. gets: the names of fetched files. answers: the next answers for a name: a status, a redirect, or "torn"."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.gets: list[str] = []
        self.answers: dict[str, list[int | str]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.gets.append(name)
        match answers.pop(0) if (answers := self.server.answers.get(name)) else None:
            case int(status):
                self.send_error(status)
            case "torn":
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
            case str(target):
                self.send_response(302)
                self.send_header("Location", target)
                self.end_headers()
            case _:
                super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with one image each, as `daguerre shard` writes them."""
    tmp_path, values = tmp_path_factory.mktemp("written"), np.random.default_rng(0)
    for i in range(IMAGES):
        path = tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.integers(0, 255, (8, 8 + 4 * (i % 3), 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"image {i}")
    return write_shards(FolderDataset(tmp_path / "images", 1), tmp_path / "shards", ShardLimits(500, 1)).parent


@pytest.fixture
def shards(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PAUSES", (0, 0))
    return shutil.copytree(written, tmp_path / "shards")


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with Server(shards) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def cached() -> list[Path]:
    return sorted(remote.shard_cache().glob("*/*.tar"), key=lambda path: path.name)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_the_folder_and_a_run_resumes_anywhere(shards: Path, server: Server, workers: int):
    theirs, mine = open_image_files(shards, 8), open_image_files(f"{server.address}/", 8)
    assert (mine.key, len(mine), mine.labels) == (theirs.key, len(theirs), theirs.labels)
    expected, found = BatchLoader(theirs, 3, 5), BatchLoader(mine, 3, 5)
    for start in (20, 0):
        for step, batch in enumerate(islice(found.stream(start, workers), 16), start):
            wanted = expected.batch(step)
            assert torch.equal(batch.x, wanted.x)
            assert (batch.captions, batch.labels) == (wanted.captions, wanted.labels)
    assert sorted(server.gets) == sorted(["index.json", "members.npz", *(f"{i:06d}.tar" for i in range(IMAGES))])  # each one once
    require_same({"source": theirs.key}, {"source": open_image_files(f"{server.address}/index.json", 8).key}, Path("run"))


def test_a_set_is_opened_without_its_shards_and_those_of_the_next_steps_are_fetched_ahead(shards: Path, server: Server, capsys):
    source = open_dataset(f"{server.address}/", 8, crop="bucket", bucket_step=4)
    assert server.gets == ["index.json", "members.npz"]
    assert np.array_equal(image_sizes(open_index(f"{server.address}")), image_sizes(open_index(shards)))
    size = sum(path.stat().st_size for path in shards.glob("*.tar")) / 1e9
    line = f"fetched when needed: {size:.3g} GB in {IMAGES} of {IMAGES} shards of {server.address}/, to "
    assert capsys.readouterr().err.startswith(line)
    batches = BatchLoader(source, 1, 0)
    stream = batches.stream(0, workers=0)
    next(stream)
    following = {f"{batches.order.batch(step)[0][1]:06d}.tar" for step in range(SHUFFLED_SHARDS)}
    for _ in range(200):
        if following <= {path.name for path in cached()}:
            break
        threading.Event().wait(0.01)
    assert following <= {path.name for path in cached()}
    stream.close()
    assert len(cached()) <= 2 * SHUFFLED_SHARDS
    source.captions(8, seed=0)
    assert len(cached()) <= 4 * SHUFFLED_SHARDS


def test_a_range_without_index_is_fetched_and_its_headers_are_read(shards: Path, server: Server):
    address = f"{server.address}/0000{{00..01}}.tar?key=secret"
    for name in ("index.json", "members.npz"):
        (shards / name).unlink()
    source = open_image_files(address, 8)
    assert (len(source), [path.name for path in cached()]) == (2, ["000000.tar", "000001.tar"])
    assert source.key == open_image_files(f"{shards}/00000[01].tar", 8).key
    assert [item.caption for item in source.items] == [item.caption for item in open_image_files(f"{shards}/00000[01].tar", 8).items]
    assert "secret" not in str(source.summary)
    before = len(server.gets)
    open_image_files(address, 8)
    assert server.gets[before:] == ["index.json?key=secret"]  # whether there is one now


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("a/{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("a/{8..10}.tar?k", ["8.tar?k", "9.tar?k", "10.tar?k"]),
        ("a/{0..1}-{2..3}.tar", ["0-2.tar", "0-3.tar", "1-2.tar", "1-3.tar"]),
        ("a/b.tar", ["b.tar"]),
    ],
)
def test_ranges_as_in_webdataset(address: str, names: list[str]):
    head, question, query = address.partition("?")
    assert remote._expand(head, question + query) == [f"a/{name}" for name in names]


def test_an_interruption_is_tried_again_and_an_error_names_address_and_status(shards: Path, server: Server):
    server.answers = {"000000.tar": ["torn", 503], "000001.tar": [404], "000002.tar": [500, 500, 500], "000003.tar": ["torn"] * 3}
    files = find_remote(f"{server.address}/").files
    with files[0].open() as file:
        assert file.read() == (shards / "000000.tar").read_bytes()
    with pytest.raises(FetchError, match=r"Cannot fetch http://127.*000001.tar: the server answers 404 .*Check the address") as error:
        files[1].fetch()
    assert error.value.missing
    with pytest.raises(FetchError, match="after 3 attempts: the server answers 500"):
        files[2].fetch()
    with pytest.raises(FetchError, match=r"after 3 attempts: the connection ended after \d+ of"):
        files[3].fetch()
    assert [path.name for path in cached()] == ["000000.tar"]
    assert not list(remote.shard_cache().rglob(".daguerre-*"))
    shutil.rmtree(remote.shard_cache())
    source, server.answers = open_image_files(f"{server.address}/", 8), {f"{i:06d}.tar": [404] for i in range(IMAGES)}
    with pytest.raises(FetchError, match="404"):  # instead of the next image
        source.sample(0, np.random.default_rng(0))


def test_a_killed_download_leaves_nothing_and_a_shard_is_fetched_once_by_many(shards: Path, server: Server):
    file = find_remote(f"{server.address}/").files[0]
    file.path.parent.mkdir(parents=True)
    (leftover := file.path.parent / ".daguerre-12345678").write_bytes(b"half")
    threads = [threading.Thread(target=file.fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.gets.count("000000.tar") == 1
    assert not leftover.exists()
    assert file.path.read_bytes() == (shards / "000000.tar").read_bytes()


def test_a_changed_shard_is_named(shards: Path, server: Server):
    first, second = sorted(shards.glob("*.tar"))[:2]
    before, files = open_image_files(f"{server.address}/", 8).key, find_remote(f"{server.address}/").files
    first.write_bytes(first.read_bytes() + bytes(512))
    with pytest.raises(FetchError, match=r"000000.tar has \d+ bytes, not \d+: it has changed"):
        files[0].fetch()
    second.write_bytes(bytes(second.stat().st_size))
    with pytest.raises(FetchError, match=r"000001.tar has another SHA-256 than index.json lists"):
        files[1].fetch()
    record = json.loads((shards / "index.json").read_text())
    record["shards"][0] |= {"bytes": first.stat().st_size, "sha256": "0" * 64}
    (shards / "index.json").write_text(json.dumps(record))
    with pytest.raises(DaguerreError, match=r"belongs to a run with source shard 000000.tar") as error:
        require_same({"source": before}, {"source": open_image_files(f"{server.address}/", 8).key}, Path("run"))
    assert "000001.tar" not in str(error.value)


def test_the_limit_removes_the_shards_that_were_used_least_recently(shards: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    with pytest.raises(FetchError, match=r"training needs 16 of these shards at a time; give at least 0.01"):
        open_image_files(f"{server.address}/", 8, shard_cache_size=15 * size / 1e9)
    monkeypatch.setattr(remote, "SHUFFLED_SHARDS", 2)
    files = find_remote(f"{server.address}/", 4.5 * size / 1e9).files
    for number in (0, 1, 2, 3, 0, 4, 5):
        files[number].open().close()
    assert [path.name for path in cached()] == [f"{i:06d}.tar" for i in (0, 3, 4, 5)]
    with files[3].open() as file:
        files[3].path.unlink()  # by another process
        assert file.read() == (shards / "000003.tar").read_bytes()
    files[3].open().close()
    assert server.gets.count("000003.tar") == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FetchError, match=r"only 0 GB are free for .*XDG_CACHE_HOME"):
        open_image_files(f"{server.address}/", 8)


def test_bad_addresses_and_answers(shards: Path, server: Server):
    record = json.loads((shards / "index.json").read_text())
    with pytest.raises(FetchError, match=r"404.*give their range: 'https://host/path/shard-\{000000..000099\}.tar'"):
        open_image_files(f"{server.address}/none/", 8)
    with pytest.raises(FetchError, match="names 0 shards"):
        open_image_files(f"{server.address}/{{5..2}}.tar", 8)
    with pytest.raises(FetchError, match=r"000098.tar: the server answers 404"):
        open_image_files(f"{server.address}/{{000098..000099}}.tar", 8)
    server.answers["index.json"] = ["ftp://127.0.0.1/index.json", "file:///etc/passwd"]
    for message in ("another scheme", "Cannot fetch"):
        with pytest.raises(FetchError, match=message):
            open_image_files(f"{server.address}/", 8)
    for change in ({"name": "../x.tar"}, {"bytes": -1}, {"sha256": "x"}, {"name": None}):
        (shards / "index.json").write_text(json.dumps({**record, "shards": [record["shards"][0] | change]}))
        with pytest.raises(FetchError, match="not the finished index"):
            open_image_files(f"{server.address}/", 8)
    (shards / "index.json").write_text(json.dumps({**record, "classes": 5}))
    with pytest.raises(FetchError, match="not the finished index"):
        open_image_files(f"{server.address}/", 8)
    (shards / "index.json").write_text(json.dumps({**record, "members": {"bytes": 1, "sha256": record["members"]["sha256"]}}))
    with pytest.raises(FetchError, match=r"members.npz has \d+ bytes, not 1"):
        open_image_files(f"{server.address}/", 8)
    for address, message in (
        ("s3://bucket/path/", "s3fs"),
        ("nothing://x/", "Protocol not known"),
        ("zip::file://x", "inside other files"),
    ):
        with pytest.raises(FetchError, match=message):
            open_image_files(address, 8)
    with pytest.raises(DaguerreError, match="applies to shards that are fetched from an address"):
        open_image_files(shards, 8, shard_cache_size=1)


def test_other_file_systems_by_fsspec(shards: Path):
    files = fsspec.filesystem("memory")
    files.put(f"{shards}/", "/set/", recursive=True)
    found = open_image_files("memory://set/", 8)
    assert found.key == open_image_files(shards, 8).key
    assert [item.caption for item in found.items] == [item.caption for item in open_image_files(shards, 8).items]
    assert file_state("memory://set/000000.tar").bytes == (shards / "000000.tar").stat().st_size
    files.rm("/set", recursive=True)
