"""Pickled checkpoints: the tensors of honest files, and nothing at all from malicious ones."""

import collections
import encodings.cp437  # zipfile's, imported here so that a late import is not heard as code that ran
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from daguerre.errors import DaguerreError
from daguerre.weights.tensors.pickle import LEGACY_START, PickledFile
from daguerre.weights.tensors.pickle_vm import MAX_DIMENSIONS

STATE = collections.OrderedDict(
    plain=torch.arange(12.0).view(3, 4),
    half=torch.randn(8).half(),
    brain=torch.randn(3).bfloat16(),
    transposed=torch.arange(12).view(3, 4).t(),
    parameter=torch.nn.Parameter(torch.randn(2, 2)),
    scalar=torch.tensor(1.5),
    window=torch.randn(4, 4)[1:3, 1:],
    empty=torch.zeros(0, 3),
    flags=torch.tensor([True, False]),
)


def optimizer_state() -> dict:
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("trainer", [True, False])
def test_an_honest_file_gives_its_tensors_bit_for_bit(tmp_path, zipped, trainer):
    beside = {
        "epoch": 3,
        "global_step": 875000,
        "callbacks": {collections.Counter: {"best": np.float64(3.0)}},
        "optimizer_states": [optimizer_state()],
        "seen": {1, 2},
        "pairs": {(1, 2): 3},
    }
    torch.save({"state_dict": STATE, **beside} if trainer else STATE, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    file = PickledFile(tmp_path / "model.ckpt")
    assert file.tensors.keys() == STATE.keys()
    for name, tensor in STATE.items():
        read = file.tensor(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape == file.tensors[name].shape
        assert torch.equal(read, tensor)
    assert file.metadata == ({"epoch": "3", "global_step": "875000"} if trainer else {})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16])
def test_dtypes_without_a_storage_class_are_read(tmp_path, dtype, zipped):
    tensor = torch.arange(12.0).view(3, 4).to(dtype)
    torch.save({"a": tensor, "row": tensor[1], "b": torch.ones(3)}, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    file = PickledFile(tmp_path / "model.ckpt")
    assert file.tensor("a").dtype == dtype
    assert torch.equal(file.tensor("a").float(), tensor.float())
    assert torch.equal(file.tensor("row").float(), tensor[1].float())
    assert torch.equal(file.tensor("b"), torch.ones(3))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "step": torch.tensor(3)},
        lambda state: {"model": state, "iter": 3},
        lambda state: {"module": state},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_the_state_dict_is_found_where_trainers_store_it(tmp_path, wrap):
    torch.save(wrap(dict(STATE)), tmp_path / "model.ckpt")
    assert PickledFile(tmp_path / "model.ckpt").tensors.keys() == STATE.keys()


def test_tensors_that_share_a_storage_share_the_map(tmp_path):
    whole = torch.arange(1000.0)
    torch.save({"head": whole[:10], "tail": whole[-10:]}, tmp_path / "shared.pt")
    file = PickledFile(tmp_path / "shared.pt")
    distance = file.tensor("tail").data_ptr() - file.tensor("head").data_ptr()
    assert distance == 990 * 4


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(4)}, path)
    before = path.read_bytes()
    PickledFile(path).tensor("a").zero_()
    assert path.read_bytes() == before
    assert torch.equal(PickledFile(path).tensor("a"), torch.ones(4))


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def armed(target: Path) -> dict[str, bytes]:
    """Pickles that make the file `target` when they are loaded."""
    touch, python = f"touch {target}", f"open({str(target)!r}, 'w').close()"
    nested = pickle.dumps(Calls(os.system, touch))
    text = b"X" + struct.pack("<I", len(touch)) + touch.encode()
    loads = Calls(pickle.loads, nested)
    return {
        "reduce os.system": pickle.dumps(Calls(os.system, touch), protocol=2),
        "reduce os.system, protocol 0": pickle.dumps(Calls(os.system, touch), protocol=0),
        "reduce os.system, protocol 5": pickle.dumps(Calls(os.system, touch), protocol=5),
        "eval": pickle.dumps(Calls(eval, python), protocol=2),
        "exec": pickle.dumps(Calls(exec, python), protocol=4),
        "Popen": pickle.dumps(Calls(subprocess.check_call, ["touch", str(target)]), protocol=2),
        "a pickle in a pickle": pickle.dumps(loads, protocol=2),
        "torch's own loader": pickle.dumps(Calls(torch.storage._load_from_bytes, _saved(Calls(os.system, touch))), protocol=2),
        "as a value of a state dict": pickle.dumps({"a": 1, "b": Calls(eval, python)}, protocol=2),
        "as a key": b"\x80\x02}cos\nsystem\n" + text + b"\x85RK\x01s.",
        "as an item in the middle": pickle.dumps([1, [2, [Calls(eval, python)]]], protocol=2),
        "by INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "by OBJ": b"(cos\nsystem\n" + text + b"o.",
        "names from the memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93" + text + b"\x85R.",
        "the function from the memo": b"\x80\x02cos\nsystem\nq\x000h\x00" + text + b"\x85R.",
        "after a mark that hides it": b"\x80\x02(cos\nsystem\n" + text + b"\x85R1K\x01.",
        "through getattr": b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\nX\x02\x00\x00\x00os\x85RX\x06\x00\x00\x00system\x86R"
        + text
        + b"\x85R.",
        "a gadget of an allowed package": b"\x80\x02cnumpy.testing._private.utils\nrunstring\nX"
        + struct.pack("<I", len(python))
        + python.encode()
        + b"}\x86R.",
        "a dotted name": b"\x80\x04\x8c\x08tempfile\x8c\x0a_os.system\x93" + text + b"\x85R.",
    }


def _saved(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def zipped(pickled: bytes, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


def legacy(pickled: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return LEGACY_START + pickle.dumps(1001, 2) + pickle.dumps(system, 2) + pickled + pickle.dumps([], 2)


CONTAINERS = {"zip": zipped, "legacy": legacy, "bare": bytes}
RUNS = {
    "exec",
    "compile",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "ctypes.dlopen",
    "socket.connect",
}
heard: list[str] = []
assert encodings.cp437
sys.addaudithook(lambda event, args: heard.append(event) if event in RUNS else None)


@pytest.mark.parametrize("name", armed(Path("x")))
def test_the_samples_are_armed(tmp_path, name):
    target = tmp_path / "ran"
    pickle.loads(armed(target)[name])
    assert target.exists()


@pytest.mark.parametrize("extension", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", armed(Path("x")))
def test_a_malicious_file_runs_nothing(tmp_path, name, container, extension):
    target, path = tmp_path / "ran", tmp_path / f"model{extension}"
    path.write_bytes(CONTAINERS[container](armed(target)[name]))
    heard.clear()
    with pytest.raises(DaguerreError, match="model"):
        PickledFile(path)
    assert heard == []
    assert not target.exists()


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    """A persistent id, as bytes."""
    return (
        b"(X\x07\x00\x00\x00storagectorch\n"
        + kind.encode()
        + b"\nX"
        + struct.pack("<I", len(key))
        + key.encode()
        + b"X\x03\x00\x00\x00cpu"
        + (_integer(numel) + b"tQ")
    )


def _integer(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(shape: list[int], strides: list[int], offset: int = 0, numel: int = 4) -> bytes:
    """A state dict {"a": tensor} of any claim, as bytes."""
    counts = [b"(" + b"".join(map(_integer, values)) + b"t" for values in (shape, strides)]
    build = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(numel=numel) + _integer(offset) + counts[0] + counts[1] + b"\x89}tR"
    return b"\x80\x02}X\x01\x00\x00\x00a" + build + b"s."


def test_the_forged_tensor_is_read_where_its_claims_hold(tmp_path):
    path = tmp_path / "forged.pt"
    path.write_bytes(zipped(tensor([2, 2], [2, 1]), **{"0": np.arange(4, dtype="<f4").tobytes()}))
    assert PickledFile(path).tensor("a").tolist() == [[0.0, 1.0], [2.0, 3.0]]


BOMBS = {
    "shape beyond the storage": tensor([2, 3], [3, 1]),
    "one element stretched over a terabyte": tensor([1 << 40], [0]),
    "offset beyond the storage": tensor([1], [1], offset=4),
    "negative offset": tensor([1], [1], offset=-1),
    "negative stride": tensor([2], [-1]),
    "negative shape": tensor([-1], [1]),
    "an empty shape beyond counting": tensor([0, 1 << 62, 1 << 62], [1, 1, 1]),
    "empty strides beyond counting": tensor([0, 2], [1 << 80, 1]),
    "a name that clears the screen": tensor([2, 2], [2, 1]).replace(b"X\x01\x00\x00\x00a", b"X\x04\x00\x00\x00\x1b[2J"),
    "too many dimensions": tensor([1] * (MAX_DIMENSIONS + 1), [1] * (MAX_DIMENSIONS + 1)),
    "storage larger than its entry": tensor([1 << 40], [1], numel=1 << 40),
    "a string of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b".",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
    "a number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b".",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "a memo slot that is not there": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "a mark that is not there": b"\x80\x02K\x01t.",
    "a pop below a mark": b"\x80\x02K\x01(R.",
    "a deep tuple as a key": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "a dictionary that holds itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a billion laughs": b"\x80\x02]q\x00" + b"".join(b"]q%ch%cah%ca" % (i, i - 1, i - 1) for i in range(1, 99)) + b".",
    "keywords for a constructor": b"\x80\x04csubprocess\nPopen\n)}X\x05\x00\x00\x00shell\x88s\x92.",
    "an unknown storage": b"\x80\x02}X\x01\x00\x00\x00a" + storage(kind="EvilStorage") + b"s.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a buffer from outside": b"\x80\x05\x97.",
    "no instruction": b"\xff\xfe\xfd",
    "nothing": b"",
    "no tensors": pickle.dumps({"a": 1}, 2),
    "not a dictionary": pickle.dumps([1, 2], 2),
}  # fmt: skip


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_malformed_pickle_is_refused_without_memory_or_time(tmp_path, name, container):
    path = tmp_path / "bomb.pt"
    path.write_bytes(zipped(BOMBS[name], **{"0": bytes(16)}) if container == "zip" else legacy(BOMBS[name]))
    with pytest.raises(DaguerreError) as caught:
        PickledFile(path)
    assert len(str(caught.value)) < 600


def archive(method: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, content in entries.items():
            out.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return buffer.getvalue()


GOOD = tensor([2, 2], [2, 1])
ARCHIVES = {
    "an archive in an archive": archive(a__data_zip=zipped(GOOD, **{"0": bytes(16)})),
    "two objects": archive(a__data_pkl=GOOD, b__data_pkl=GOOD, a__data__0=bytes(16)),
    "a compressed object": archive(zipfile.ZIP_DEFLATED, a__data_pkl=GOOD + bytes(1 << 20), a__data__0=bytes(16)),
    "a compressed storage": archive(zipfile.ZIP_DEFLATED, a__data_pkl=GOOD, a__data__0=bytes(16)),
    "a short storage": archive(a__data_pkl=GOOD, a__data__0=bytes(15)),
    "no storage": archive(a__data_pkl=GOOD),
    "big-endian numbers": archive(a__data_pkl=GOOD, a__data__0=bytes(16), a__byteorder=b"big"),
    "an object outside its folder": archive(data_pkl=GOOD, data__0=bytes(16)),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "an empty file": b"",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_malformed_archive_is_refused(tmp_path, name):
    path = tmp_path / "model.ckpt"
    path.write_bytes(ARCHIVES[name])
    with pytest.raises(DaguerreError, match=r"model\.ckpt"):
        PickledFile(path)


@pytest.mark.parametrize("new", [True, False])
def test_damage_anywhere_is_an_error_or_harmless_and_never_runs(tmp_path, new):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2, 2), "b": torch.ones(3)}, "epoch": 1}, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    heard.clear()
    for end in range(0, len(whole), 17):
        path.write_bytes(whole[:end])
        with pytest.raises(DaguerreError):
            PickledFile(path)
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            file = PickledFile(path)
            for name in file.tensors:
                file.tensor(name).sum()
        except DaguerreError:
            pass
    assert heard == []
