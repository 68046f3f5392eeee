"""Files are written completely or not at all, and read exactly or with one clear error."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from daguerre import atomic_io as disk
from daguerre.atomic_io import atomic_path, atomic_write
from daguerre.errors import DaguerreError
from daguerre.nn.meta import fill
from daguerre.weights.tensors.reader import open_tensors
from daguerre.weights.tensors.safetensors import read_json, read_metadata, read_safetensors, save_json, save_safetensors


def test_tensors_are_read_bit_for_bit(tmp_path: Path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).half(),
        "ids": torch.arange(7),
        "cl": torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last),
    }
    save_safetensors(tmp_path / "x.safetensors", tensors, {"family": "tiny"})
    again = read_safetensors(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert read_metadata(tmp_path / "x.safetensors") == {"format": "pt", "family": "tiny"}


def test_a_dtype_does_not_convert_integers(tmp_path: Path):
    save_safetensors(tmp_path / "x.safetensors", {"w": torch.randn(3), "ids": torch.arange(3)})
    again = read_safetensors(tmp_path / "x.safetensors", dtype=torch.float16)
    assert (again["w"].dtype, again["ids"].dtype) == (torch.float16, torch.int64)


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"w": torch.randn(64)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DaguerreError, match=r"x\.safetensors' is cut short"):
        read_safetensors(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DaguerreError, match="There is no file"):
        read_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(DaguerreError, match="There is no file"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(("text", "message"), [("{", "not readable as JSON"), ("[1]", "JSON list; it must be")])
def test_invalid_json_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DaguerreError, match=message):
        read_json(tmp_path / "x.json")


def test_json_is_read_as_written(tmp_path: Path):
    save_json(tmp_path / "x.json", {"a": [1, None, "é"]})
    assert read_json(tmp_path / "x.json") == {"a": [1, None, "é"]}


def test_fill_lists_every_error_at_once_and_leaves_the_module_unchanged():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    given = {"0.weight": torch.zeros(3, 9), "0.bias": torch.zeros(3), "1.weight": torch.zeros(1, 3), "stray": torch.zeros(1)}
    with pytest.raises(DaguerreError) as caught:
        fill(module, given, "model.safetensors")
    message = str(caught.value)
    assert "1 missing (1.bias)" in message
    assert "1 unknown (stray)" in message
    assert "0.weight is [3, 9], expected [3, 2]" in message
    assert all(p.is_meta for p in module.parameters())


def test_fill_does_not_copy_tensors():
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    given = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    fill(module, given, "x")
    assert module.weight.data_ptr() == given["weight"].data_ptr()


def failing_fsync(_handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.txt"
    path.write_text("old")
    monkeypatch.setattr(disk.os, "fsync", failing_fsync)
    with pytest.raises(DaguerreError, match="No space left on device"), atomic_write(path) as file:
        file.write(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


def test_a_full_device_is_one_error():
    with pytest.raises(DaguerreError, match="Cannot write '/dev/full/x'"), atomic_write("/dev/full/x"):
        pass


def write_half(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise ValueError("mine")


def test_an_error_while_writing_leaves_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="mine"):
        write_half(tmp_path / "x.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_a_folder(tmp_path: Path):
    for text in ("one", "two"):
        with atomic_path(tmp_path / "model") as beside:
            beside.mkdir()
            (beside / text).write_text(text)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["two"]


def test_the_old_folder_is_restored_if_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "one").write_text("one")
    rename = Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if not self.name.endswith(".old") and target.name == "model":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(DaguerreError, match="Input/output error"), atomic_path(tmp_path / "model") as beside:
        beside.mkdir()
    assert (tmp_path / "model" / "one").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_convolution_weights_become_channels_last_with_equal_values(tmp_path: Path):
    tensors = {"conv": torch.randn(8, 4, 3, 3).half(), "linear": torch.randn(70, 70).half(), "ids": torch.arange(3)}
    save_safetensors(tmp_path / "x.safetensors", tensors)
    file = open_tensors(tmp_path / "x.safetensors")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        ours = file.to_compute_layout("cpu", dtype)
        assert ours["conv"].is_contiguous(memory_format=torch.channels_last)
        assert all(torch.equal(ours[name], tensor.to(ours[name].dtype)) for name, tensor in tensors.items())
    assert torch.equal(file.tensor("conv"), tensors["conv"])  # pages that were given back are read again


@pytest.mark.skipif(sys.platform != "linux", reason="reads process memory from /proc, which needs Linux")
def test_a_file_and_its_copy_in_another_dtype_are_never_in_memory_together(tmp_path: Path):
    size = 48 << 20
    save_safetensors(tmp_path / "x.safetensors", {f"{i}": torch.zeros(size // 16, dtype=torch.float16) for i in range(8)})
    program = (
        "import sys, torch; from daguerre.weights.tensors.reader import open_tensors\n"
        "peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "file = open_tensors(sys.argv[1]); before = peak()\n"
        "kept = file.to_compute_layout('cpu', torch.bfloat16); print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.safetensors")], check=True, capture_output=True, text=True)
    assert int(run.stdout) < 1.5 * size
