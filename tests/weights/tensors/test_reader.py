"""Checkpoints of every container, and every kind of damage: one error that lists what and where."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from daguerre.errors import DaguerreError
from daguerre.weights.tensors.reader import CONFIGS, is_finite, open_tensors, weights_in
from tests.weights import checkpoints

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def test_every_dtype_is_read_bit_for_bit(tmp_path):
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES} | {
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"made": "here"})
    file = open_tensors(tmp_path / "x.safetensors")
    assert (file.container, file.metadata) == ("safetensors", {"made": "here"})
    for name, tensor in file.read().items():
        assert tensor.dtype == tensors[name].dtype == file.shapes[name].dtype
        assert tensor.shape == tensors[name].shape == file.shapes[name].shape
        assert torch.equal(
            tensor.view(torch.uint8) if tensor.ndim else tensor, tensors[name].view(torch.uint8) if tensor.ndim else tensors[name]
        )


def test_opening_reads_only_the_header(tmp_path):
    path = tmp_path / "huge.safetensors"
    size = 1 << 40  # a sparse file of a terabyte
    header = json.dumps({"a": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    assert open_tensors(path).shapes["a"].shape == (size // 2,)


def test_the_format_is_recognised_by_content_not_by_name(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "a.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "b.ckpt")
    assert open_tensors(tmp_path / "a.safetensors").container == "pickle"
    assert open_tensors(tmp_path / "b.ckpt").container == "safetensors"
    for name in ("a.safetensors", "b.ckpt"):
        assert torch.equal(open_tensors(tmp_path / name).read()["a"], torch.ones(2))


def forged(path: Path, header: dict | bytes, data: int = 64, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


DAMAGED = {
    "overlapping": ({"a": entry(0, 32), "b": entry(16, 48)}, "b overlaps a"),
    "one inside the other": ({"a": entry(0, 64), "b": entry(16, 32)}, "b overlaps a"),
    "cut short": ({"a": entry(0, 32), "b": entry(32, 128)}, r"b: its last 64 bytes are missing"),
    "wrong size": ({"a": entry(0, 32, [3, 5])}, r"a: shape \[3, 5\] of F32 needs 60 bytes, and it has 32"),
    "unknown type": ({"a": entry(0, 32, dtype="F4")}, "'F4' is unknown"),
    "negative shape": ({"a": entry(0, 32, [-8])}, "no valid counts"),
    "negative place": ({"a": entry(-32, 0, [8])}, "no valid counts"),
    "reversed place": ({"a": entry(32, 0, [8])}, "needs 32 bytes"),
    "a shape of no numbers": ({"a": entry(0, 32, ["8"])}, "no valid counts"),  # type: ignore[list-item]
    "a shape beyond counting": ({"a": entry(0, 32, [1 << 62, 1 << 62])}, "no valid counts"),
    "an empty shape beyond counting": ({"a": entry(0, 0, [0, 1 << 47, 1 << 47])}, "no valid counts"),
    "a name that clears the screen": ({"a\x1b[2J": entry(0, 32)}, r"'a\\x1b\[2J': its name has unprintable"),
    "a name of half a character": (b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', r"'\\ud800': its name"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 32]}}, "'shape'"),
    "no object": ({"a": 7}, "a: "),
    "not JSON": (b"{" + b"x" * 40, "header that cannot be read"),
    "deep JSON": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "cannot be read|a: "),
    "a name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        "twice",
    ),
    "a list": (b"[1, 2, 3]", "neither a safetensors file nor"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_one_error_that_names_the_tensor(tmp_path, name):
    header, message = DAMAGED[name]
    with pytest.raises(DaguerreError, match=message) as caught:
        open_tensors(forged(tmp_path / "x.safetensors", header))
    assert "x.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_all_damaged_tensors_are_listed_at_once(tmp_path):
    header = {"a": entry(0, 32), "b": entry(16, 48), "c": entry(48, 64, [3]), "d": entry(48, 640)}
    with pytest.raises(DaguerreError) as caught:
        open_tensors(forged(tmp_path / "x.safetensors", header))
    for words in ("damaged in 3 tensors", "b overlaps a", "c: shape [3]", "d: its last"):
        assert words in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_wrong_header_length_is_refused(tmp_path, length):
    with pytest.raises(DaguerreError, match=r"x\.safetensors"):
        open_tensors(forged(tmp_path / "x.safetensors", {"a": entry(0, 32)}, length=length))


@pytest.mark.parametrize(
    "start", [b"version https://git-lfs.github.com/spec/v1\noid", b"<!DOCTYPE html>", b"\n <html>", b"GGUF\x03", b"\x89HDF\r\n"]
)
def test_files_mistaken_for_checkpoints_are_named(tmp_path, start):
    (tmp_path / "model.safetensors").write_bytes(start + bytes(100))
    with pytest.raises(DaguerreError, match="is no checkpoint but"):
        open_tensors(tmp_path / "model.safetensors")


def test_a_truncated_file_is_refused_at_every_length(tmp_path):
    path = checkpoints.write(tmp_path / "x.safetensors", {"a": torch.ones(5), "b": torch.ones(3).half()})
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(DaguerreError):
            open_tensors(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tensors_with_nan_or_infinity_are_named(tmp_path, dtype, value):
    bad = torch.zeros(300)
    bad[137] = value
    path = checkpoints.write(tmp_path / "x.safetensors", {"good": torch.ones(3), "bad": bad.to(dtype)})
    with pytest.raises(DaguerreError, match=r"NaN or infinity in 1 tensors \(bad\)"):
        open_tensors(path).read()
    assert torch.equal(open_tensors(path).read(["good"])["good"], torch.ones(3))


def test_integers_empty_tensors_and_maximal_values_are_finite():
    assert is_finite(torch.tensor([1 << 40]))
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.full((3,), torch.finfo(torch.float16).max).half())


def sharded(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors.index.json") -> Path:
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, inside in shards.items():
        checkpoints.write(folder / shard, {key: tensors[key] for key in inside})
    (folder / name).write_text(json.dumps({"weight_map": {key: shard for shard, inside in shards.items() for key in inside}}))
    return folder / name


def test_shards_open_as_one_file(tmp_path):
    tensors = {name: torch.randn(2, 2) for name in "abcde"}
    file = open_tensors(sharded(tmp_path, tensors))
    assert file.container == "sharded"
    assert all(torch.equal(file.read()[name], tensor) for name, tensor in tensors.items())


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path):
    index = sharded(tmp_path, {name: torch.randn(2) for name in "abcde"})
    listing = json.loads(index.read_text())
    listing["weight_map"]["f"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(listing))
    with pytest.raises(DaguerreError, match=r"1 tensors that are not in their shards: f"):
        open_tensors(index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DaguerreError, match=r"1 shards that are not in its folder: model-00002"):
        open_tensors(index)


def test_an_index_cannot_reach_files_outside_its_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    checkpoints.write(tmp_path / "secret.safetensors", {"a": torch.ones(1)})
    index = tmp_path / "inside" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(DaguerreError, match=r"not in its folder: secret\.safetensors"):
        open_tensors(index)


def test_weights_are_found_by_variant_and_in_pickles_as_a_last_resort(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    assert weights_in(tmp_path).name == "diffusion_pytorch_model.bin"
    checkpoints.write(tmp_path / "diffusion_pytorch_model.fp16.safetensors", {"a": torch.ones(1)})
    assert weights_in(tmp_path, "fp16").name == "diffusion_pytorch_model.fp16.safetensors"
    checkpoints.write(tmp_path / "diffusion_pytorch_model.safetensors", {"a": torch.ones(1)})
    assert weights_in(tmp_path).name == "diffusion_pytorch_model.safetensors"
    with pytest.raises(DaguerreError, match="'bf16' that can be read; it has diffusion_pytorch_model"):
        weights_in(tmp_path, "bf16")


def test_a_folder_opens_as_one_container_with_its_configs(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"part": part}))
        checkpoints.write(tmp_path / part / "diffusion_pytorch_model.fp16.safetensors", {"w": torch.full((2,), len(part)).half()})
    file = open_tensors(tmp_path)
    assert file.container == "folder"
    assert {name: tensor.tolist() for name, tensor in file.read().items()} == {"unet/w": [4, 4], "vae/w": [3, 3]}
    assert json.loads(file.metadata[CONFIGS]) == {"unet": {"part": "unet"}, "vae": {"part": "vae"}}


def test_missing_files_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(DaguerreError, match="There is no file"):
        open_tensors(tmp_path / "none.safetensors")
    with pytest.raises(DaguerreError, match="is not a model"):
        open_tensors(tmp_path)
