"""A model whose parts take turns in memory makes the pictures of one that is there as a whole."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from daguerre.cli.main import main
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.cpu import linear as cpu_linear
from daguerre.nn.cpu import prepack
from daguerre.pipelines import generate, memory_plan
from daguerre.pipelines.planners.refiner import with_refiner
from daguerre.runtime import offload
from daguerre.runtime.memory_estimate import MemoryPlan
from daguerre.runtime.offload import SequentialOffload
from daguerre.weights import load_diffusion, save
from daguerre.weights.convert import convert
from daguerre.weights.tensors import reader
from daguerre.weights.tensors.reader import TensorFile


@pytest.fixture
def folder(tmp_path: Path, make_tiny_model: Callable[..., LatentDiffusion], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(offload, "MAX_RESIDENT_ELEMENTS", 2000)  # of a tiny model, too, some tensors go
    return save(make_tiny_model(prediction="epsilon", zero_terminal_snr=False), tmp_path / "tiny-v1.5")


def whole(network: nn.Module) -> bool:
    return not any(tensor.is_meta for tensor in network.parameters())


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_picture_is_the_same_and_one_part_at_a_time_is_there(folder: Path, low_memory: bool):
    model = load_diffusion(folder, offload=True)
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
    plain = generate(load_diffusion(folder), **request)[0]
    assert np.abs(np.asarray(picture.image, dtype=int) - np.asarray(plain.image, dtype=int)).max() <= 1


def test_beside_a_unet_that_stays_the_others_take_turns_and_the_picture_is_the_same(folder: Path):
    model = load_diffusion(folder, offload=SequentialOffload(keep_loaded=("unet",)))
    assert (model.unet_offload_dtype, model.name) == (None, "tiny-v1.5")
    parts = model.unet, model.autoencoder, model.conditioner.encoder  # type: ignore[attr-defined]
    there = []
    for part in parts:
        part.register_forward_hook(lambda *_: there.append([whole(each) for each in parts]))
    request = {"prompt": "a red apple", "steps": 3, "seed": 5}
    picture = generate(model, **request)[0]
    assert {tuple(each) for each in there} == {(True, False, True), (True, False, False)}
    assert [whole(part) for part in parts] == [True, True, False]
    assert picture.image.tobytes() == generate(load_diffusion(folder), **request)[0].image.tobytes()


def test_a_model_and_its_refiner_take_turns_in_one_order(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Each fits, but not both: all their parts take turns. With less than one of them needs the run is refused."""
    run = {"width": 32, "height": 32, "num_images": 1, "conditions": 2, "device": torch.device("cpu"), "dtype": torch.float32}
    monkeypatch.setattr(memory_plan, "free_memory", lambda _device: 1 << 40)
    assert memory_plan.plan_offload([folder, folder], **run) is None
    monkeypatch.setattr(memory_plan, "LARGE_MODEL", 0)
    always = memory_plan.plan_offload([folder, folder], keep_loaded=("unet",), **run)
    assert always is not None
    assert always.keep_loaded == ("unet",)
    assert not caplog.records
    one = memory_plan.plan_from_header(folder, **run, low_memory=True).peak
    monkeypatch.setattr(memory_plan, "free_memory", lambda _device: round(1.15 * one))
    order = memory_plan.plan_offload([folder, folder], **run)
    assert order is not None
    assert order.keep_loaded == ()
    assert "parts of both models are loaded one at a time" in caplog.text
    model = load_diffusion(folder, offload=order)
    both = with_refiner(model, load_diffusion(folder, offload=order))
    assert both.refiner is not None
    there = []
    for unet in (both.unet, both.refiner.unet):
        unet.register_forward_hook(lambda *_: there.append((whole(both.unet), whole(both.refiner.unet))))
    generate(both, prompt="a red apple", steps=4, refiner_switch_at=0.5)
    assert set(there) == {(True, False), (False, True)}
    monkeypatch.setattr(memory_plan, "free_memory", lambda _device: one)
    with pytest.raises(DaguerreError, match="are free"):
        memory_plan.plan_offload([folder, folder], **run)


def test_a_film_of_a_model_in_turns_is_the_film_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def filmed(name: str) -> tuple[bytes, bytes]:
        out, film = tmp_path / f"{name}.png", tmp_path / f"{name}.webp"
        assert main(["txt2img", "a red apple", "--steps", "2", "--out", str(out), "--animation", str(film)]) == 0
        return Image.open(out).tobytes(), film.read_bytes()

    stays = []
    plain = filmed("plain")
    monkeypatch.setattr(memory_plan, "LARGE_MODEL", 0)
    monkeypatch.setattr(
        memory_plan, "SequentialOffload", lambda keep_loaded=(): stays.append(keep_loaded) or SequentialOffload(keep_loaded)
    )
    assert filmed("turns") == plain
    assert stays == [("unet",)]


def test_a_part_that_is_dropped_is_read_again_as_it_was(folder: Path):
    model, plain = load_diffusion(folder, offload=True, dtype=torch.bfloat16), load_diffusion(folder, dtype=torch.bfloat16)
    z, told = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16(), ["a red apple"]
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(model.autoencoder.decode(z), plain.autoencoder.decode(z))
            assert torch.equal(model.conditioner(told).context, plain.conditioner(told).context)  # type: ignore[arg-type]


@pytest.fixture
def half(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in float16, and taken for a network so large that no second copy of it is made."""
    if not cpu_linear.supports(torch.float32):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(prepack, "MAX_COPY_BYTES", 0)
    convert(folder, folder.with_name("half"), dtype=torch.float16)
    return folder.with_name("half")


@pytest.mark.parametrize("tiling", ["none", "both"])
def test_half_precision_stays_in_its_file_while_a_run_computes_in_float32(half: Path, tiling: str):
    model, plain = load_diffusion(half, offload=True), load_diffusion(half)
    assert (model.dtype, model.unet_offload_dtype, plain.unet_offload_dtype) == (torch.float32, torch.float16, None)
    dtypes: list[set[torch.dtype]] = []
    model.unet.register_forward_hook(lambda *_: dtypes.append({weight.dtype for weight in model.unet.parameters()}))
    request = {"prompt": "a red apple", "steps": 3, "seed": 5, "tiling": tiling}
    pictures = [generate(each, **request)[0].image for each in (model, plain)]
    assert np.abs(np.asarray(pictures[0], dtype=int) - np.asarray(pictures[1], dtype=int)).max() <= 1
    assert dtypes == [{torch.float16, torch.float32}] * 3
    assert model.dtype == torch.float32
    x, t, told = torch.zeros(1, model.unet.config.in_channels, 8, 8), torch.tensor([3.0]), model.conditioner(["a red apple"])
    with torch.no_grad():  # asked directly, not by a run
        torch.testing.assert_close(model.unet(x, t, told), plain.unet(x, t, told), atol=1e-5, rtol=1e-5)
    assert dtypes[-1] == {torch.float32}


def test_such_a_run_needs_half_the_memory_for_its_unet_and_is_not_refused(half: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    run = {"width": 32, "height": 32, "num_images": 1, "conditions": 2, "device": torch.device("cpu"), "dtype": torch.float32}
    needs = [memory_plan.plan_from_header(each, **run, low_memory=True).peak for each in (folder, half)]
    assert needs[1] < needs[0]
    for room in (memory_plan,):
        monkeypatch.setattr(room, "free_memory", lambda _device: round(1.12 * needs[1]))
    assert memory_plan.plan_from_header(half, **run).offload
    with pytest.raises(DaguerreError, match="are free"):
        memory_plan.plan_from_header(folder, **run)
    assert generate(load_diffusion(half, offload=True), prompt="a red apple", steps=1)[0].image.size == (32, 32)
    bfloat16 = {**run, "dtype": torch.bfloat16}
    assert (
        memory_plan.plan_from_header(half, **bfloat16, low_memory=True).peak
        == memory_plan.plan_from_header(folder, **bfloat16, low_memory=True).peak
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads process memory from /proc, which needs Linux")
def test_a_folder_in_another_dtype_gives_the_pages_of_its_files_back(folder: Path, monkeypatch: pytest.MonkeyPatch):
    size, seen, read = sum(file.stat().st_size for file in folder.glob("*/*.safetensors")), [], count()

    def is_finite(tensor: torch.Tensor, of=reader.is_finite) -> bool:
        if next(read) % 20 == 0:  # reading the list of pages takes longer than the tensor
            seen.append(resident(folder))
        return of(tensor)

    monkeypatch.setattr(reader, "is_finite", is_finite)
    model = load_diffusion(folder, offload=True, dtype=torch.bfloat16)
    assert len(seen) > 10
    assert max(*seen, resident(folder)) < size / 2
    model.unet.conv_in(torch.zeros(1, model.unet.config.in_channels, 8, 8).bfloat16())
    assert whole(model.unet)
    assert resident(folder) < size / 2


def resident(folder: Path) -> int:
    """Bytes of the files in a folder that this process has in memory."""
    parts = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(1024 * int(re.search(r"Rss: +(\d+)", part)[1]) for part in parts if f" {folder}/" in part)  # type: ignore[index]


def test_the_way_is_told_from_headers_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """With memory for the largest part, but not for all, parts take turns; with less a request is refused, and nothing was read."""
    monkeypatch.setattr(memory_plan, "open_tensors", lambda path, open_=memory_plan.open_tensors: _unread(open_(path)))
    run = {"width": 32, "height": 32, "num_images": 1, "conditions": 2, "device": torch.device("cpu"), "dtype": torch.float32}
    monkeypatch.setattr(memory_plan, "free_memory", lambda _device: 1 << 40)
    assert memory_plan.plan_from_header(folder, **run) == MemoryPlan()
    least = memory_plan.plan_from_header(folder, **run, low_memory=True).peak
    monkeypatch.setattr(memory_plan, "free_memory", lambda _device: round(1.15 * least))
    switched = memory_plan.plan_from_header(folder, **run)
    assert switched.offload
    assert "one network in memory at a time" in switched.message
    monkeypatch.setattr(memory_plan, "free_memory", lambda _device: least)
    with pytest.raises(DaguerreError, match="are free"):
        memory_plan.plan_from_header(folder, **run)


def _unread(file: TensorFile) -> TensorFile:
    def refuse(name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    return replace(file, tensor=refuse)
