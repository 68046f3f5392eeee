"""Hub ids: what was fetched is found without a connection, what was not is one clear sentence."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from daguerre.errors import DaguerreError
from daguerre.weights import load
from daguerre.weights.catalog import may_be_on_the_hub
from daguerre.weights.hub import choose_files, resolve_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NETWORKS = [f"{part}/{name}" for part in ("unet", "vae") for name in ("config.json", "diffusion_pytorch_model.safetensors")]
FOLDER = ["model_index.json", *NETWORKS, "tokenizer/vocab.json", "scheduler/scheduler_config.json", "README.md", "sd-v1.ckpt"]


def fetched(cache: Path, repo: str, files: list[str]) -> Path:
    """A repository as the hub's library leaves it on the disk."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for file in files:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text("{}")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def no_socket(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_socket")
@pytest.mark.parametrize("offline", [True, False])
def test_what_was_fetched_is_found_without_a_socket(tmp_path, offline):
    folder = fetched(tmp_path, "me/parts", FOLDER)
    file = fetched(tmp_path, "me/single", ["model.safetensors", "README.md"])
    assert resolve_hub_id("me/parts", offline=offline, cache=tmp_path) == folder
    assert resolve_hub_id("me/single", offline=offline, cache=tmp_path) == file / "model.safetensors"
    assert resolve_hub_id("me/parts/sd-v1.ckpt", offline=offline, cache=tmp_path) == folder / "sd-v1.ckpt"
    assert resolve_hub_id(f"me/parts@{COMMIT}", offline=offline, cache=tmp_path) == folder
    assert resolve_hub_id("me/parts@main", offline=offline, cache=tmp_path) == folder


@pytest.mark.usefixtures("no_socket")
@pytest.mark.parametrize("source", ["me/none", "me/none/model.safetensors", "me/parts@other", "me/parts/none.safetensors"])
def test_offline_what_was_not_fetched_is_said_without_a_socket(tmp_path, source):
    fetched(tmp_path, "me/parts", FOLDER)
    with pytest.raises(DaguerreError, match="is not in the cache, and downloads are disabled offline"):
        resolve_hub_id(source, offline=True, cache=tmp_path)


@pytest.mark.usefixtures("no_socket")
def test_a_path_that_looks_like_an_id_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "model").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve_hub_id("me/model") == Path("me/model")
    assert resolve_hub_id(tmp_path) == tmp_path


@pytest.mark.usefixtures("no_socket")
@pytest.mark.parametrize(
    "source", ["none", "/none/such", "a/../b", "a/b/../../c", "a//b", "-a/b", "a/b@..", "a b/c", "x" * 5000, "a/b\0c", "", Path("a/b")]
)
def test_invalid_ids_never_reach_the_network(source):
    with pytest.raises(DaguerreError):
        resolve_hub_id(source if source else "?")


def test_only_used_files_are_downloaded(tmp_path, monkeypatch):
    half = [f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae")]
    files = [*FOLDER, *half, "unet/diffusion_pytorch_model.bin", "safety_checker/config.json", "safety_checker/model.safetensors"]
    asked = {}

    def download(repo, *, revision, allow_patterns=None, local_files_only=False, cache_dir=None):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        asked.update(repo=repo, revision=revision, files=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision: files)
    assert resolve_hub_id("me/model@v2", variant="fp16") == tmp_path
    configs = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "unet/config.json", "vae/config.json"]
    assert asked == {"repo": "me/model", "revision": "v2", "files": sorted(configs + half)}


def test_shards_are_downloaded_with_their_index_in_one_precision():
    files = ["model_index.json", "unet/config.json"]
    full = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)] + [
        "unet/diffusion_pytorch_model.safetensors.index.json"
    ]
    half = [f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half += ["unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    assert choose_files(files + full + half, "me/model") == sorted(files + full)
    assert choose_files(files + full + half, "me/model", "fp16") == sorted(files + half)


def test_several_checkpoints_are_listed_and_none_is_chosen():
    with pytest.raises(DaguerreError, match=r"has a\.safetensors, b\.safetensors; name one file, as in me/model/"):
        choose_files(["a.safetensors", "b.safetensors", "b.ckpt"], "me/model")
    with pytest.raises(DaguerreError, match="has no checkpoint"):
        choose_files(["README.md"], "me/model")
    with pytest.raises(DaguerreError, match="no weights of the variant 'bf16' for unet"):
        choose_files(FOLDER, "me/model", "bf16")


def test_a_local_path_imports_neither_torch_nor_huggingface_hub():
    code = """
import sys
from daguerre.weights.hub import resolve_hub_id
resolve_hub_id("/")
assert not {"huggingface_hub", "torch"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_offline_works_without_any_network(tmp_path):
    """Runs in its own network namespace if the kernel allows it; the tests above hold everywhere."""
    unshare = shutil.which("unshare")
    namespace = (
        [unshare, "-rn"] if unshare and subprocess.run([unshare, "-rn", "true"], check=False, capture_output=True).returncode == 0 else []
    )
    folder = fetched(tmp_path, "me/parts", FOLDER)
    code = """
import pathlib, sys
from daguerre.weights.hub import resolve_hub_id
print(resolve_hub_id("me/parts", offline=True, cache=pathlib.Path(sys.argv[1])))
"""
    run = subprocess.run(
        [*namespace, sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
    )
    assert run.stdout.strip() == str(folder)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("me/parts", True),
        ("me/parts@main", True),
        ("me/parts/sd-v1.ckpt", True),
        ("me/parts/deep/sd-v1.safetensors@main", True),
        ("me/parts/readme", False),
        ("./me/parts", False),
        ("~/me", False),
        ("there/parts", False),
        ("me", False),
        ("", False),
    ],
)
def test_only_what_looks_like_an_id_is_asked_for(tmp_path, monkeypatch, source, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()  # a slip in a path is no id
    assert may_be_on_the_hub(source) is asked


@pytest.mark.usefixtures("no_socket")
@pytest.mark.parametrize("source", ["me/parts", "me/parts@main", "me/parts/sd-v1.ckpt"])
def test_the_one_door_asks_the_cache_alone_when_offline(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DaguerreError, match="is not in the cache, and downloads are disabled offline"):
        load(source, offline=True)
