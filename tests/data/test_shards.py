"""Shards: what is written, what is read by index, the order of a training, and damaged or missing files."""

import io
import json
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.cli.main import main
from daguerre.data import BatchLoader, FolderDataset
from daguerre.data.catalog import open_dataset, open_image_files
from daguerre.data.order import SHUFFLED_SHARDS, BatchOrder
from daguerre.data.shards import index as shard_index
from daguerre.data.shards import tar as tar_module
from daguerre.data.shards.dataset import ShardDataset
from daguerre.data.shards.tar import scan_tar
from daguerre.data.shards.write import ShardLimits, write_shards
from daguerre.errors import DaguerreError
from daguerre.training.datasets.classes import open_labelled
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.run_identity import require_same

SIZES = ((40, 30), (30, 40), (32, 32))


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with eleven images each; one of them has captions."""
    rng = np.random.default_rng(0)
    for name in ("cat", "red_apple"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(11):
            width, height = SIZES[i % 3]
            path = tmp_path / "images" / name / f"{i}.{'png' if i % 2 else 'JPG'}"
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
            if name == "cat":
                path.with_suffix(".txt").write_text(f"cät {i}", encoding="utf-8")
    return tmp_path / "images"


def write(folder: Path, samples: int = 4, name: str = "shards") -> Path:
    source = FolderDataset(folder, 1, captioned=False)
    return write_shards(source, folder.parent / name, ShardLimits(500, samples)).parent


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_shards_have_the_files_captions_and_classes(folder: Path):
    out = write(folder)
    members: dict[str, bytes] = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found = {entry.name: tar.extractfile(entry).read() for entry in tar}  # pyright: ignore[reportOptionalMemberAccess]
        assert list(found) == sorted(found)
        assert len({Path(name).with_suffix("") for name in found}) <= 4
        members |= found
    assert len(members) == 22 * 3
    for path in folder.rglob("*"):
        if path.suffix in (".png", ".JPG", ".txt"):
            assert members[path.relative_to(folder).with_suffix(path.suffix.lower()).as_posix()] == path.read_bytes()
    assert (members["cat/3.cls"], members["red_apple/3.cls"], members["red_apple/3.txt"]) == (b"0", b"1", b"red apple")
    index = json.loads((out / "index.json").read_text())
    assert (index["images"], index["classes"]) == (22, ["cat", "red apple"])
    assert [each["images"] for each in index["shards"]] == [4, 4, 4, 4, 4, 2]


def test_a_run_that_was_killed_ends_with_the_same_bytes(folder: Path):
    out = write(folder)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    started = {name: value for name, value in json.loads(before["index.json"]).items() if name != "shards"}
    (out / "index.json").write_text(json.dumps(started))
    (out / "000002.tar").unlink()
    with pytest.raises(DaguerreError, match="not complete; run the same"):
        ShardDataset(out, 16)
    write(folder)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(DaguerreError, match="not overwritten"):
        write(folder, samples=5)


def test_names_are_unique_and_size_limits_a_shard(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for name in ("a.b.png", "a_b.png", "a.b.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    source = FolderDataset(tmp_path / "images", 1, captioned=False)
    out = write_shards(source, tmp_path / "shards", ShardLimits(1e-6)).parent
    found = [name for shard in sorted(out.glob("*.tar")) for name, _, _ in scan_tar(shard, [])]
    assert found == ["a_b.png", "a_b_2.webp", "a_b_3.png"]
    assert len(list(out.glob("*.tar"))) == 3


def test_a_dataset_over_shards_equals_that_over_the_folder(folder: Path):
    out = write(folder)
    mine, theirs = open_image_files(out, 24, captioned=True, crop="random"), FolderDataset(folder, 24)
    assert isinstance(mine, ShardDataset)
    by_name = {theirs.relative_path(item).with_suffix("").as_posix(): i for i, item in enumerate(theirs.items)}
    assert len(mine) == len(theirs) == 22
    assert mine.labels == ["cat", "red apple"]
    for i, item in enumerate(mine.items):
        expected = theirs.sample(by_name[mine.relative_path(item).with_suffix("").as_posix()], rng())
        found = mine.sample(i, rng())
        assert (found.caption, found.label) == (expected.caption, expected.label)
        assert found.image.tobytes() == expected.image.tobytes()
    assert len(open_dataset(f"{out}/00000[01].tar", 16)) == 8
    assert sorted(open_labelled(str(out), 16, TrainingImageOptions()).names) == ["cat", "red apple"]
    with pytest.raises(DaguerreError, match="There is no directory"):
        open_dataset(f"{out}/none*.tar", 16)


def test_buckets_parts_and_validation(folder: Path):
    out = write(folder)
    source = open_image_files(out, 32, crop="bucket", bucket_step=8)
    expected = FolderDataset(folder, 32, crop="bucket", bucket_step=8)
    assert Counter(item.size for item in source.items) == Counter(item.size for item in expected.items)
    assert [len(part) for part in source.parts_of_one_size()] == [len(part) for part in expected.parts_of_one_size()]
    assert {len({each.items[i].size for i in range(len(each))}) for each in source.parts_of_one_size()} == {1}
    trained, held_out = open_image_files(out, 16).split(0.3)
    assert len(trained) + len(held_out) == 22
    assert len({trained.key, held_out.key, open_image_files(out, 16).key}) == 3
    assert {item.path for item in trained.items}.isdisjoint(item.path for item in held_out.items)
    assert held_out.part(list(held_out.items)[:2]).sample(1, rng()).image.size == (16, 16)


def test_an_order_visits_each_sample_once_and_few_shards_at_a_time(folder: Path):
    out = write(folder, samples=1, name="single")
    source = open_image_files(out, 8)
    order = BatchOrder(len(source), 2, 5, shards=source.shards)
    epochs = [[index for step in range(11 * e, 11 * (e + 1)) for _, index in order.batch(step)] for e in range(3)]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    shards = np.repeat(np.arange(100), 10)
    order = BatchOrder(1000, 10 * SHUFFLED_SHARDS, 0, shards=shards)
    found = [shards[[index for _, index in order.batch(step)]] for step in range(12)]
    assert all(len(set(each)) == SHUFFLED_SHARDS for each in found)
    assert any(np.diff(each).any() for each in found)
    assert len(set(found[0]) & set(found[1])) == 0


def test_batches_do_not_depend_on_history_or_workers_or_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch):
    out = write(folder)
    batches = BatchLoader(open_image_files(out, 8), 5, 3)
    expected = {step: batches.batch(step) for step in (11, 2, 6)}
    monkeypatch.setattr(shard_index, "scan_tar", None)  # from here on the index comes from the cache
    again = BatchLoader(open_image_files(out, 8), 5, 3)
    for workers in (0, 1, 3):
        streamed = dict(zip(range(2, 12), islice(again.stream(2, workers), 10), strict=True))
        for step, batch in expected.items():
            assert torch.equal(streamed[step].x, batch.x)
            assert streamed[step].captions == batch.captions
    shard = next(out.glob("*.tar"))
    shard.touch()
    with pytest.raises(TypeError):
        open_image_files(out, 8)


def test_what_is_damaged_is_named_and_counted_and_the_rest_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "cat" / "3.txt").unlink()
    out = write(folder, samples=11)
    first, second = sorted(out.glob("*.tar"))
    with tarfile.open(first) as tar:
        header, image = tar.getmember("cat/2.jpg").offset, tar.getmember("cat/5.png")
    content = bytearray(first.read_bytes())
    content[header : header + 512] = b"x" * 512
    content[image.offset_data : image.offset_data + image.size] = bytes(image.size)
    first.write_bytes(content)
    with tarfile.open(second) as tar:
        last = max(tar.getmembers(), key=lambda each: each.offset)
    second.write_bytes(second.read_bytes()[: last.offset_data])
    source = open_image_files(out, 8, captioned=True)
    assert len(source) == 22 - 3
    (left_out,) = [line for line in source.summary if line.startswith("left out")]
    for part in (
        "left out: 5: ",
        "000000.tar damaged at byte",
        "000000.tar/cat/2 has no image",
        "ends within red_apple/9.txt",
        "cat/3.png has no caption",
    ):
        assert part in left_out
    names = [item.path.name for item in source.items]
    damaged = names.index("5.png")
    assert source.sample(damaged, rng()).image.tobytes() == source.sample(damaged + 1, rng()).image.tobytes()
    assert capsys.readouterr().err.count("5.png is not an image") == 1
    (out / "000000.tar").unlink()
    assert "left out: 3: 000000.tar is missing" in open_image_files(out, 8, captioned=True).summary[1]


def test_foreign_shards_with_duplicates_and_captions_in_json(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    image = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(image, "PNG")
    long = "x" * 120 + "ü"
    files = [
        ("a.png", image.getvalue()),
        ("a.json", b'{"caption": "a red square", "width": 9}'),
        ("a.seg.png", image.getvalue()),
        ("a.cls", b"7"),
    ]
    files += [(f"{long}.png", image.getvalue()), ("a.png", image.getvalue()), ("stats.json", b"{}")]
    for format, name in ((tarfile.USTAR_FORMAT, "u"), (tarfile.GNU_FORMAT, "g"), (tarfile.PAX_FORMAT, "p")):
        with tarfile.open(tmp_path / "shards" / f"{name}.tar", "w", format=format) as tar:
            for member, content in files:
                if format != tarfile.USTAR_FORMAT or member.isascii():
                    entry = tarfile.TarInfo(member)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        with tarfile.open(tmp_path / "shards" / f"{name}.tar") as tar:
            expected = [(entry.name, entry.offset_data, entry.size) for entry in tar]
        assert list(scan_tar(tmp_path / "shards" / f"{name}.tar", [])) == expected
    source = open_image_files(tmp_path / "shards", 8)
    assert [item.path.parent.name for item in source.items] == ["g.tar", "g.tar", "p.tar", "p.tar", "u.tar"]
    assert [item.caption for item in source.items] == ["a red square", "", "a red square", "", "a red square"]
    assert source.labels == ["7"]
    assert "left out: 6: g.tar/a occurs twice, g.tar/stats has no image, p.tar/a occurs twice" in source.summary[1]


def test_headers_are_read_alike_together_and_one_by_one_whatever_is_damaged(tmp_path: Path):
    content, path = io.BytesIO(), tmp_path / "a.tar"
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(("cat", "cat/a.png", "cat/a.txt", "u.png", "empty.txt", "b.png")):
            entry = tarfile.TarInfo(name)
            entry.mtime = number + 0.5 if number > 2 else number  # as webdataset writes it: a pax record
            entry.size, entry.type = (0, tarfile.DIRTYPE) if number == 0 else (300 * (number != 4), tarfile.REGTYPE)
            tar.addfile(entry, io.BytesIO(bytes(range(50)) * 6))
    whole, random, read = bytearray(content.getvalue()), np.random.default_rng(0), 0
    for attempt in range(200):
        damaged = bytearray(whole)
        for _ in range(0 if attempt == 0 else random.integers(1, 4)):
            position = 512 * random.integers(0, 16) + random.choice([random.integers(512), 124, 135, 148, 156])
            damaged[position] = random.choice([random.integers(256), *b"\0x-75"])
        path.write_bytes(damaged[: len(damaged) if attempt % 3 else random.integers(len(damaged) + 1)] if attempt else damaged)
        together, problems = tar_module._scan_ordinary(path), list[str]()
        expected = list(tar_module._scan_any(path, problems))
        if attempt == 0:
            with tarfile.open(path) as tar:
                assert together == [(entry.name, entry.offset_data, entry.size) for entry in tar if entry.isfile()]
        if together is not None:
            read += 1
            assert (together, problems) == (expected, [])
    assert read > 20


def test_a_renamed_shard_is_named_when_a_run_is_resumed(folder: Path):
    out = write(folder)
    before = open_image_files(out, 16).key
    moved = out.parent / "moved"
    out.rename(moved)
    assert open_image_files(moved, 16).key == before
    (moved / "000003.tar").rename(moved / "other.tar")
    with pytest.raises(DaguerreError) as error:
        require_same({"source": before}, {"source": open_image_files(moved, 16).key}, Path("run"))
    assert "000003.tar" in str(error.value)
    assert "other.tar" in str(error.value)
    assert "000002.tar" not in str(error.value)


def test_the_command_writes_shards_that_training_reads(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["shard", str(folder), "--out", str(tmp_path / "out"), "--samples", "10"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out' / 'index.json'}\n"
    assert "images: 22 in" in printed.err
    assert main(["shard", str(tmp_path / "out"), "--out", str(tmp_path / "again"), "--samples", "22"]) == 0
    source = open_dataset(str(tmp_path / "again"), 16)
    assert sorted(source.captions(22, 0)) == sorted(FolderDataset(folder, 16).captions(22, 0))
