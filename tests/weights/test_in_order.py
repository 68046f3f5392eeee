"""A model whose parts take turns in memory makes the pictures of one that is there as a whole."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from daguerre.apps.cli import main
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import generate
from daguerre.pipelines.refiner import with_refiner
from daguerre.weights import ahead, in_order, load, save
from daguerre.weights.estimate import Way
from daguerre.weights.in_order import InOrder
from daguerre.weights.reader import TensorFile


@pytest.fixture
def folder(tmp_path: Path, make_tiny_model: Callable[..., LatentDiffusion], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(in_order, "SMALL", 2000)  # of a tiny model, too, some tensors go
    return save(make_tiny_model(prediction="epsilon", zero_terminal_snr=False), tmp_path / "tiny-v1.5")


def whole(network: nn.Module) -> bool:
    return not any(tensor.is_meta for tensor in network.parameters())


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_picture_is_the_same_and_one_part_at_a_time_is_there(folder: Path, low_memory: bool):
    model = load(folder, in_order=True)
    parts = model.unet, model.autoencoder, model.conditioner.encoder  # type: ignore[attr-defined]
    assert not any(whole(part) for part in parts)
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    there = []
    for part in parts:
        part.register_forward_hook(lambda *_: there.append([whole(each) for each in parts]))
    request = {"prompt": "a red apple", "steps": 3, "seed": 5, "low_memory": low_memory}
    picture = generate(model, **request)[0]
    assert [False, False, True] in there
    assert [True, False, False] in there
    assert [whole(part) for part in parts] == [False, True, False]
    plain = generate(load(folder), **request)[0]
    assert np.abs(np.asarray(picture.image, dtype=int) - np.asarray(plain.image, dtype=int)).max() <= 1


def test_beside_a_unet_that_stays_the_others_take_turns_and_the_picture_is_the_same(folder: Path):
    model = load(folder, in_order=InOrder(stay=("unet",)))
    assert (model.in_order, model.name) == (False, "tiny-v1.5")
    parts = model.unet, model.autoencoder, model.conditioner.encoder  # type: ignore[attr-defined]
    there = []
    for part in parts:
        part.register_forward_hook(lambda *_: there.append([whole(each) for each in parts]))
    request = {"prompt": "a red apple", "steps": 3, "seed": 5}
    picture = generate(model, **request)[0]
    assert {tuple(each) for each in there} == {(True, False, True), (True, False, False)}
    assert [whole(part) for part in parts] == [True, True, False]
    assert picture.image.tobytes() == generate(load(folder), **request)[0].image.tobytes()


def test_a_model_and_its_refiner_take_turns_in_one_order(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Each fits, but not both: all their parts take turns. With less than one of them needs the run is refused."""
    run = {"width": 32, "height": 32, "count": 1, "conditions": 2, "device": torch.device("cpu"), "dtype": torch.float32}
    monkeypatch.setattr(ahead, "free_memory", lambda _device: 1 << 40)
    assert ahead.order_ahead([folder, folder], **run) is None
    monkeypatch.setattr(ahead, "LARGE", 0)
    always = ahead.order_ahead([folder, folder], stay=("unet",), **run)
    assert always is not None
    assert always.stay == ("unet",)
    assert not caplog.records
    one = ahead.way_ahead(folder, **run, low_memory=True).peak
    monkeypatch.setattr(ahead, "free_memory", lambda _device: round(1.15 * one))
    order = ahead.order_ahead([folder, folder], **run)
    assert order is not None
    assert order.stay == ()
    assert "one part of both models in memory at a time" in caplog.text
    model = load(folder, in_order=order)
    both = with_refiner(model, load(folder, in_order=order))
    assert both.refiner is not None
    there = []
    for unet in (both.unet, both.refiner.unet):
        unet.register_forward_hook(lambda *_: there.append((whole(both.unet), whole(both.refiner.unet))))
    generate(both, prompt="a red apple", steps=4, refine_at=0.5)
    assert set(there) == {(True, False), (False, True)}
    monkeypatch.setattr(ahead, "free_memory", lambda _device: one)
    with pytest.raises(DaguerreError, match="are free"):
        ahead.order_ahead([folder, folder], **run)


def test_a_film_of_a_model_in_turns_is_the_film_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def filmed(name: str) -> tuple[bytes, bytes]:
        out, film = tmp_path / f"{name}.png", tmp_path / f"{name}.webp"
        assert main(["txt2img", "a red apple", "--steps", "2", "--out", str(out), "--film", str(film)]) == 0
        return Image.open(out).tobytes(), film.read_bytes()

    stays = []
    plain = filmed("plain")
    monkeypatch.setattr(ahead, "LARGE", 0)
    monkeypatch.setattr(ahead, "InOrder", lambda stay=(): stays.append(stay) or InOrder(stay))
    assert filmed("turns") == plain
    assert stays == [("unet",)]


def test_a_part_that_is_dropped_is_read_again_as_it_was(folder: Path):
    model, plain = load(folder, in_order=True, dtype=torch.bfloat16), load(folder, dtype=torch.bfloat16)
    z, told = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16(), ["a red apple"]
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(model.autoencoder.decode(z), plain.autoencoder.decode(z))
            assert torch.equal(model.conditioner(told).context, plain.conditioner(told).context)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process as Linux tells it")
def test_a_folder_in_another_dtype_gives_the_pages_of_its_files_back(folder: Path):
    model = load(folder, in_order=True, dtype=torch.bfloat16)
    size = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
    print(size, resident(folder))
    assert resident(folder) < size / 2
    model.unet.conv_in(torch.zeros(1, model.unet.config.in_channels, 8, 8).bfloat16())
    assert whole(model.unet)
    print(size, resident(folder))
    assert resident(folder) < size / 2


def resident(folder: Path) -> int:
    """Bytes of the files in a folder that this process has in memory."""
    parts = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(1024 * int(re.search(r"Rss: +(\d+)", part)[1]) for part in parts if f" {folder}/" in part)  # type: ignore[index]


def test_the_way_is_told_from_headers_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """With memory for the largest part, but not for all, parts take turns; with less a request is refused, and nothing was read."""
    monkeypatch.setattr(ahead, "open_tensors", lambda path, open_=ahead.open_tensors: _unread(open_(path)))
    run = {"width": 32, "height": 32, "count": 1, "conditions": 2, "device": torch.device("cpu"), "dtype": torch.float32}
    monkeypatch.setattr(ahead, "free_memory", lambda _device: 1 << 40)
    assert ahead.way_ahead(folder, **run) == Way()
    least = ahead.way_ahead(folder, **run, low_memory=True).peak
    monkeypatch.setattr(ahead, "free_memory", lambda _device: round(1.15 * least))
    switched = ahead.way_ahead(folder, **run)
    assert switched.in_order
    assert "one part in memory at a time" in switched.line
    monkeypatch.setattr(ahead, "free_memory", lambda _device: least)
    with pytest.raises(DaguerreError, match="are free"):
        ahead.way_ahead(folder, **run)


def _unread(file: TensorFile) -> TensorFile:
    def refuse(name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    return replace(file, tensor=refuse)
