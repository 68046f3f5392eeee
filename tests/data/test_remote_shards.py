"""Shards at an address: fetched once, when they are needed, with the samples and the order of the shards in a folder."""

import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
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
from daguerre.data.shards import fetch, index, remote
from daguerre.data.shards.fetch import FetchError, file_state, shown
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
    with pytest.raises(FetchError, match=r"after 3 attempts: the server answers 500 [^.]*\.$"):
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


def test_a_full_disk_is_not_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch):
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    file, opened = find_remote(f"{server.address}/").files[0], Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: Full() if mode == "r+b" else opened(path, mode))
    with pytest.raises(FetchError, match=r"Cannot write .* No space left on device"):
        file.fetch()
    assert server.gets.count("000000.tar") == 1
    assert not cached()


def test_images_with_other_captions_and_the_version_of_one_that_is_not_in_the_cache(shards: Path, server: Server):
    """As DreamBooth has them."""
    local, whole = open_image_files(shards, 8), open_image_files(f"{server.address}/", 8)
    items = [whole.items[i] for i in (0, 1, 2)]
    part = whole.part(item._replace(caption="new") for item in items)
    expected = BatchLoader(local.part(local.items[i] for i in (0, 1, 2)), 1, 0)
    for step, batch in enumerate(islice(BatchLoader(part, 1, 0).stream(0, 2), 3)):
        assert batch.captions == ["new"]
        assert torch.equal(batch.x, expected.batch(step).x)
    assert "shard 000000.tar" in part.key
    shutil.rmtree(remote.shard_cache())
    before = len(server.gets)
    versions = [item.version for item in items]
    assert len({*versions}) == 3
    assert len(server.gets) == before
    again = open_image_files(f"{server.address}/", 8)
    assert [again.items[i].version for i in (0, 1, 2)] == versions


def test_an_index_is_not_kept_if_a_shard_disappears_while_it_is_read(shards: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    (shards / "index.json").unlink()
    address, fetched = f"{server.address}/0000{{00..01}}.tar", remote.RemoteFile.fetch

    def evicted(file: remote.RemoteFile) -> None:
        fetched(file)
        file.path.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(remote.RemoteFile, "fetch", evicted)
        with pytest.raises(FetchError, match="Cannot read the shards of"):
            open_image_files(address, 8)
    assert len(open_image_files(address, 8)) == 2


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
    (shards / "index.json").unlink()
    file = find_remote(f"{server.address}/{{000002..000002}}.tar").files[0]
    os.utime(shards / "000002.tar", (1, 1))
    with pytest.raises(FetchError, match=r"000002.tar has another version than at the start"):
        file.fetch()


DAMAGES: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "offset": lambda arrays: arrays["offset"].__setitem__(0, 1 << 40),
    "bytes": lambda arrays: arrays["bytes"].__setitem__(0, -1),
    "caption_bytes": lambda arrays: arrays["caption_bytes"].__setitem__(3, (1 << 63) - 1),
    "caption_kind": lambda arrays: arrays["caption_kind"].__setitem__(0, 3),
    "label": lambda arrays: arrays["label"].__setitem__(0, 9),
    "ends": lambda arrays: arrays["ends"].__setitem__(0, 5),
    "name_end": lambda arrays: arrays["name_end"].__setitem__(-1, 1 << 40),
    "type": lambda arrays: arrays.update(label=arrays["label"].astype(float)),
    "length": lambda arrays: arrays.update(sizes=arrays["sizes"][1:]),
    "missing": lambda arrays: arrays.pop("names"),
    "lists": lambda arrays: arrays.update(lists=np.frombuffer(b"[5, [], []]", dtype=np.uint8)),
}


def test_a_damaged_description_of_the_images_is_refused(shards: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    members, content = shards / "members.npz", (shards / "members.npz").read_bytes()
    arrays, record = dict(np.load(members)), json.loads((shards / "index.json").read_text())
    damaged = [content[:-30], content[:200], b"", content[:300] + bytes(20) + content[320:]]
    for damage in DAMAGES.values():
        changed, written = {name: array.copy() for name, array in arrays.items()}, io.BytesIO()
        damage(changed)
        np.savez_compressed(written, **changed)  # pyright: ignore[reportArgumentType]
        damaged.append(written.getvalue())

    def write(content: bytes) -> None:
        members.write_bytes(content)
        described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (shards / "index.json").write_text(json.dumps({**record, "members": described}))

    for each in damaged:
        write(each)
        with pytest.raises(FetchError, match=r"members.npz is damaged|not the finished index"):
            open_index(f"{server.address}/")
    write(content)
    assert len(open_index(f"{server.address}/")) == IMAGES
    monkeypatch.setattr(index, "MAX_INDEX_BYTES", 100)
    monkeypatch.setattr(index, "_MAX_COMPRESSION", 1)
    with pytest.raises(FetchError, match=r"members.npz is damaged"):
        open_index(f"{server.address}/")
    monkeypatch.setattr(fetch, "MAX_INDEX_BYTES", 100)
    with pytest.raises(FetchError, match=r"index.json has more than"):
        open_index(f"{server.address}/")


def test_the_limit_removes_the_shards_that_were_used_least_recently(shards: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    with pytest.raises(FetchError, match=r"training needs 16 of these shards at a time; give at least 0.01"):
        open_image_files(f"{server.address}/", 8, shard_cache_size=15 * size / 1e9)
    monkeypatch.setattr(remote, "SHUFFLED_SHARDS", 2)
    files = find_remote(f"{server.address}/", 4.5 * size / 1e9).files
    for number in (0, 1, 2, 3, 0, 4, 5):
        files[number].fetch()
    assert [path.name for path in cached()] == [f"{i:06d}.tar" for i in (0, 3, 4, 5)]
    with files[3].open() as file:
        files[3].path.unlink()  # by another process
        assert file.read() == (shards / "000003.tar").read_bytes()
    files[3].open().close()
    assert server.gets.count("000003.tar") == 2
    (others := remote.shard_cache() / "others").mkdir()
    with (others / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (others / ".daguerre-12345678").write_bytes(bytes(size))
        files[6].fetch()
    assert len(cached()) == 3  # and the one that another process fetches
    files[7].fetch()
    assert not (others / ".daguerre-12345678").exists()  # of a process that was killed
    assert len(cached()) == 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FetchError, match=r"only 0 GB are free for .*XDG_CACHE_HOME"):
        open_image_files(f"{server.address}/", 8)


def test_hosts_of_this_machine_and_of_local_networks():
    local = ("127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1", "::ffff:127.0.0.1")
    assert not any(fetch._is_public(host) for host in (*local, "0.0.0.0", None))
    assert all(fetch._is_public(host) for host in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"))
    assert shown("ftp://me:secret@host/a@b.tar?key=c@d") == "ftp://host/a@b.tar"


def test_bad_addresses_and_answers(shards: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    record = json.loads((shards / "index.json").read_text())
    with pytest.raises(FetchError, match=r"404.*give their range: 'https://host/path/shard-\{000000..000099\}.tar'"):
        open_image_files(f"{server.address}/none/", 8)
    with pytest.raises(FetchError, match="names 0 shards"):
        open_image_files(f"{server.address}/{{5..2}}.tar", 8)
    with pytest.raises(FetchError, match=r"000098.tar: the server answers 404"):
        open_image_files(f"{server.address}/{{000098..000099}}.tar", 8)
    here = server.address.replace("127.0.0.1", "localhost")
    with monkeypatch.context() as patched:
        patched.setattr(fetch, "_is_public", lambda host: host == "127.0.0.1")
        server.answers["index.json"] = [f"{here}/index.json"]
        with pytest.raises(FetchError, match=r"redirects to http://localhost.*an address in a local network"):
            open_image_files(f"{server.address}/", 8)
    server.answers["index.json"] = [f"{here}/index.json"]
    assert len(open_image_files(f"{server.address}/", 8)) == IMAGES  # the given address is in a local network itself
    with pytest.raises(FetchError, match="a user name and password are not sent") as error:
        open_image_files(server.address.replace("//", "//me:secret@"), 8)
    assert "secret" not in str(error.value)
    server.answers["index.json"] = ["ftp://127.0.0.1/index.json", "file:///etc/passwd"]
    for message in ("another scheme", "Cannot fetch"):
        with pytest.raises(FetchError, match=message):
            open_image_files(f"{server.address}/", 8)
    for change in ({"name": "../x.tar"}, {"bytes": -1}, {"bytes": 0}, {"bytes": 1e3}, {"bytes": True}, {"sha256": "x"}, {"name": None}):
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
    with pytest.raises(DaguerreError, match=r"is not an address. Leave out --shard-cache-size"):
        open_image_files(shards, 8, shard_cache_size=1)


def test_other_file_systems_by_fsspec(shards: Path):
    files = fsspec.filesystem("memory")
    files.put(f"{shards}/", "/set/", recursive=True)
    found = open_image_files("memory://set/", 8)
    assert found.key == open_image_files(shards, 8).key
    assert [item.caption for item in found.items] == [item.caption for item in open_image_files(shards, 8).items]
    assert file_state("memory://set/000000.tar").bytes == (shards / "000000.tar").stat().st_size
    files.rm("/set", recursive=True)
