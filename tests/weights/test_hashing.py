"""A model is known by its weights, wherever they lie and however often it is asked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from daguerre.cli.model_loading import open_model
from daguerre.errors import DaguerreError
from daguerre.models.vq_model import VQModel
from daguerre.weights import hashing, identity, load_diffusion, save
from daguerre.weights.hashing import file_hash, files_hash, network_hash
from daguerre.weights.inspect import inspect
from tests.weights import checkpoints


def test_a_file_is_hashed_again_only_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "CACHE_MIN_BYTES", 3)
    file, reads = tmp_path / "a", []
    digest = hashing.hashlib.file_digest
    monkeypatch.setattr(hashing.hashlib, "file_digest", lambda *given: reads.append(1) or digest(*given))
    file.write_bytes(b"one")
    assert file_hash(file) == file_hash(file) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert len(reads) == 1
    hashing._file_hash.cache_clear()  # as in another run
    file_hash(file)
    assert len(reads) == 1
    file.write_bytes(b"three")
    file_hash(file)
    assert len(reads) == 2
    (tmp_path / "cache/daguerre/hashes.json").write_text("nonsense")
    hashing._file_hash.cache_clear()
    file_hash(file)
    assert len(reads) == 3
    with pytest.raises(DaguerreError, match="There is no file"):
        file_hash(tmp_path / "none")


def test_a_networks_hash_is_of_its_values():
    network = VQModel(checkpoints.VQ_MODEL)
    halved = {name: tensor.half() for name, tensor in network.state_dict().items()}
    assert network_hash(network) == network_hash(dict(reversed(network.state_dict().items())))
    assert network_hash(halved) == network_hash({name: tensor.float() for name, tensor in halved.items()})
    assert network_hash(halved) != network_hash(network)


def test_models_tell_which_weights_they_are(tmp_path: Path):
    path = checkpoints.write(tmp_path / "a.safetensors", checkpoints.sd1())
    model = load_diffusion(path, device="cpu")
    assert identity(model) == file_hash(path) == inspect(path, hashed=True).identity
    assert identity(load_diffusion(path, device="cpu", dtype=torch.bfloat16)) == identity(model)
    folder, copy = save(model, tmp_path / "folder"), save(model, tmp_path / "z" / "copy")
    assert (
        identity(load_diffusion(folder, device="cpu"))
        == identity(load_diffusion(copy, device="cpu"))
        == inspect(folder, hashed=True).identity
    )
    other = replace(model, files=())
    assert identity(other) != identity(model)
    before = identity(other)
    with torch.no_grad():
        other.unet.conv_in.weight += 1
    assert identity(other) != before


def test_a_swapped_autoencoder_is_known_by_its_file_in_any_precision(tmp_path: Path):
    path = checkpoints.write(tmp_path / "a.safetensors", checkpoints.sd1())
    vae = checkpoints.write(tmp_path / "vae.safetensors", checkpoints.autoencoder(prefix=""))
    other = checkpoints.write(tmp_path / "other.safetensors", {name: t + 1 for name, t in checkpoints.autoencoder(prefix="").items()})
    both = {identity(open_model(str(path), str(vae), "cpu", dtype, offline=True)) for dtype in ("float32", "bfloat16", "float16")}
    assert both == {files_hash([path, vae])}
    assert both.isdisjoint({identity(open_model(str(path), each, "cpu", "float32", offline=True)) for each in (None, str(other))})
