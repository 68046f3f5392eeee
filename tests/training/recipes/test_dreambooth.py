"""`train dreambooth`: the class keeps its share of the loss, its images are generated once, and a run resumes exactly."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import daguerre
from daguerre.data import Batch, FolderDataset
from daguerre.data.catalog import open_image_files
from daguerre.data.shards.write import ShardLimits, write_shards
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.datasets.fine_tuning import PriorBatch
from daguerre.training.objectives.diffusion import DiffusionTask, PriorPreservation
from daguerre.training.options.adapters.dreambooth import DreamBoothRecipe
from daguerre.training.options.adapters.lora import LoraOptions
from daguerre.training.recipes.adapters.dreambooth import captioned, run
from daguerre.training.recipes.adapters.lora import header
from daguerre.weights import load_diffusion, save
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_metadata, read_safetensors

LOOP = LoopConfig(
    max_train_steps=4, batch_size=2, learning_rate=5e-4, lr_warmup_steps=1, lr_decay=0, ema_decay=0, sample_every=0, checkpoint_every=2
)
PROMPTS = {"instance_prompt": "a zorble apple", "class_prompt": ("a red apple", "an apple"), "num_class_images": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, of which one has a caption."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).ellipse((4, 4 + number, 28, 28), fill="teal")
        image.save(folder / f"{number}.png")
    (folder / "2.txt").write_text("a Zorble, on white")
    return folder


@pytest.fixture
def saved(tiny_model: LatentDiffusion, tmp_path: Path) -> str:
    return str(save(tiny_model, tmp_path / "tiny"))


def recipe_of(folder: Path, out: Path, model: str, **more: Any) -> DreamBoothRecipe:
    return DreamBoothRecipe(data=folder, out=out, model=model, **{"loop": LOOP, **PROMPTS, **more})


def batch_of(captions: list[str], seed: int) -> Batch:
    return Batch(torch.randn(len(captions), 6, 8, 8, generator=torch.Generator().manual_seed(seed)), captions, latent=True)


@torch.no_grad()
def test_the_loss_is_that_of_the_images_plus_the_weighted_one_of_the_class(tiny_model: LatentDiffusion):
    encode = tiny_model.conditioner.encode_captions  # pyright: ignore
    task = PriorPreservation(DiffusionTask(tiny_model, DiffusionLoss(caption_dropout=0), encode, ()), 0.3)
    batch = PriorBatch(batch_of(["a zorble", "a zorble apple"], 1), batch_of(["an apple", "a red apple"], 2))
    generator, expected = torch.Generator().manual_seed(7), []
    for part in (batch.instance, batch.prior):
        torch.rand(2, generator=generator)  # which captions are dropped
        t = (torch.rand(2, generator=generator, dtype=torch.float64) * 1000).long()
        eps = torch.randn(part.x.shape, generator=generator)
        alpha = tiny_model.schedule.alphas_cumprod[t].float().sqrt()[:, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        v = tiny_model.unet(alpha * part.x + sigma * eps, t, encode(part.captions))
        expected.append((v - (alpha * eps - sigma * part.x)).square().mean().item())
    ((name, loss, logged),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(7), 2), 0)
    assert name == "unet"
    assert (logged["instance"].item(), logged["prior"].item()) == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(expected[0] + 0.3 * expected[1], rel=1e-4)
    ((_, alone, _),) = task.losses(batch.instance, task.networks, BatchRandom(torch.Generator().manual_seed(7), 2), 0)  # as for validation
    assert alone.item() == pytest.approx(expected[0], rel=1e-4)


def test_a_part_of_a_batch_has_equal_shares():
    part = PriorBatch(batch_of(["a", "b", "c", "d"], 1), batch_of(["e", "f", "g", "h"], 2))[2:4]
    assert (len(part), part.instance.captions, part.prior.captions) == (2, ["c", "d"], ["g", "h"])


def test_an_interrupted_run_resumes_exactly_with_its_class_images(saved: str, folder: Path, tmp_path: Path):
    def trained(out: str, steps: int) -> dict[str, Tensor]:
        return read_safetensors(run(recipe_of(folder, tmp_path / out, saved, loop=replace(LOOP, max_train_steps=steps))))

    whole, half = trained("whole", 4), trained("parts", 2)
    images = sorted((tmp_path / "parts" / "class-images").iterdir())
    assert [path.name for path in images] == [f"{number:04d}.{kind}" for number in range(3) for kind in ("png", "txt")]
    assert [images[number].read_text() for number in (1, 3, 5)] == ["a red apple", "an apple", "a red apple"]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in images]
    images[2].unlink()
    parts = trained("parts", 4)
    after = [(path.read_bytes(), path.stat().st_mtime_ns) for path in images]
    assert [content for content, _ in before] == [content for content, _ in after]
    assert [number for number in range(6) if before[number] != after[number] and number != 3] == [2]  # only this one is generated again
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in whole
    tags = read_metadata(tmp_path / "whole" / "whole.safetensors")["ss_tag_frequency"]
    assert tags == '{"images": {"a zorble apple": 2, "a Zorble": 1, "on white": 1}}'
    with pytest.raises(DaguerreError, match="belongs to a run with source"):
        run(recipe_of(folder, tmp_path / "parts", saved, class_prompt=("an apple",)))


def test_the_full_form_trains_the_whole_unet_and_nothing_else(saved: str, folder: Path, tmp_path: Path):
    path = run(recipe_of(folder, tmp_path / "full", saved, full=True, class_data=tmp_path / "apples"))
    assert path == tmp_path / "full" / "model"
    assert len(list((tmp_path / "apples").glob("*.png"))) == 3
    before, after = load_diffusion(saved), daguerre.load(path)
    assert isinstance(after, LatentDiffusion)
    changed = [not torch.equal(a, b) for a, b in zip(before.unet.parameters(), after.unet.parameters(), strict=True)]
    assert all(changed)
    assert network_hash(before.conditioner) == network_hash(after.conditioner)  # pyright: ignore
    assert network_hash(before.autoencoder) == network_hash(after.autoencoder)  # pyright: ignore


def test_shards_at_an_address(saved: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(2):
        (folder / f"{number}.txt").write_text("a teal, apple")
    written = write_shards(FolderDataset(folder, 1), tmp_path / "shards", ShardLimits(500, 1)).parent
    files = fsspec.filesystem("memory")
    files.put(f"{written}/", "/zorble/", recursive=True)
    address, steps = "memory://zorble/", replace(LOOP, max_train_steps=1, workers=1)
    recipe = recipe_of(folder, tmp_path / "out", saved, loop=steps, cache=False, class_prompt=())
    assert "ss_tag_frequency" not in header(recipe, load_diffusion(saved), open_image_files(address, 32))  # pyright: ignore
    metadata = read_metadata(run(replace(recipe, data=address)))
    assert json.loads(metadata["ss_tag_frequency"]).popitem()[1] == {"a teal": 2, "apple": 2, "a Zorble": 1, "on white": 1}
    files.rm("/zorble", recursive=True)


def test_captions_without_the_word_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "1.txt").write_text("a teal apple")
    source = FolderDataset(folder, 32, captioned=False)
    alone = recipe_of(folder, tmp_path, "x", class_prompt=())
    assert [item.caption for item in captioned(source, alone).items] == ["a zorble apple", "a teal apple", "a Zorble, on white"]
    assert not capsys.readouterr().err  # without a class, every word of the prompt may be the new one
    captioned(source, recipe_of(folder, tmp_path, "x"))
    assert "warning: 1 of 3 captions lack 'zorble', such as 'a teal apple' of 1.png" in capsys.readouterr().err


def test_a_folder_without_images_is_refused(saved: str, tmp_path: Path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DaguerreError, match="No images"):
        run(recipe_of(tmp_path / "none", tmp_path / "out", saved))
    assert not (tmp_path / "out").exists()


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"instance_prompt": "an apple"}, "instance_prompt is 'an apple', which has no word"),
    ({"instance_prompt": " "}, "which has no word"),
    ({"class_prompt": ("an apple", "")}, "A class_prompt is empty"),
    ({"num_class_images": 0}, "num_class_images is 0"),
    ({"prior_loss_weight": -1.0}, "prior_loss_weight is -1"),
    ({"full": True, "lora": LoraOptions(4)}, "--full trains the whole UNet"),
    ({"full": True, "loop": replace(LOOP, learning_rate=1e-3)}, "learning_rate is 0.001, which is for a LoRA"),
)


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(DaguerreError, match=message):
        recipe_of(Path(), Path(), "x", **options)
