"""Recipes end to end at a tiny size: a run interrupted in any task resumes, and the model is the same in every bit."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import daguerre
from daguerre.data import ShapesDataset, ShapesMix
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import SD2, UNet, UNetConfig
from daguerre.training.config import LoopConfig
from daguerre.training.loop import Interrupted
from daguerre.training.options.latent_diffusion import EmojiRecipe, LatentRecipe
from daguerre.training.options.text_to_image import TextToImageRecipe
from daguerre.training.recipes import RECIPES
from daguerre.training.recipes.emoji import PRESETS
from daguerre.training.recipes.emoji import run as run_emoji
from daguerre.training.recipes.latent_diffusion import run_latent_recipe, with_options
from daguerre.training.recipes.stages import (
    AutoencoderPlan,
    ClipPlan,
    DiffusionPlan,
    LatentDiffusionPlan,
    resize_unet,
    tiny_text,
    tiny_vision,
)
from daguerre.training.recipes.text_to_image import run as run_text_to_image

LOOP = LoopConfig(max_train_steps=4, batch_size=8, lr_warmup_steps=1, log_every=2, sample_every=4, checkpoint_every=2)
PLAN = LatentDiffusionPlan(
    size=16,
    autoencoder=AutoencoderPlan(
        AutoencoderKLConfig(latent_channels=4, channels=(8, 16, 16), blocks=1, mid_attention=False, norm_groups=4, quant_conv=False), LOOP
    ),
    clip=ClipPlan(tiny_text(600, 64, 1, length=16), tiny_vision(16, 8, 64, 1, projection=64), LOOP),
    diffusion=DiffusionPlan(
        UNetConfig(4, 4, channels=(32, 64), blocks=1, depth=(0, 1), heads=(1, 1), context_width=64),
        replace(LOOP, max_train_steps=8),
        cached_samples=48,
    ),
    curriculum=0.5,
)


@dataclass(frozen=True)
class TinyRecipe(LatentRecipe):
    out: Path = Path("runs/tiny")


def run(recipe: TinyRecipe, plan: LatentDiffusionPlan = PLAN) -> Path:
    return run_latent_recipe(recipe, plan, ShapesDataset(16), ["a red circle"], curriculum=ShapesDataset(16, mix=ShapesMix(pair=0.6)))


def weights(model: LatentDiffusion) -> dict[str, torch.Tensor]:
    parts = {"unet": model.unet, "vae": model.autoencoder, "text": model.conditioner.encoder}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return run(TinyRecipe(tmp_path_factory.mktemp("runs") / "whole"))


def test_the_finished_model_generates_images(finished):
    model = daguerre.load(finished)
    (image,) = daguerre.generate(model, prompt="a red circle", steps=3)
    assert image.image.size == (16, 16)
    samples = sorted(path.name for path in finished.parent.glob("*/samples/*.png"))
    assert samples == ["000004.png"] * 3  # autoencoder, curriculum and diffusion


def test_latents_have_unit_variance(finished):
    model = daguerre.load(finished)
    rng = np.random.default_rng(9)
    source = ShapesDataset(16)
    images = [np.asarray(source.sample(i, rng).image) for i in range(64)]
    z = model.autoencoder.encode(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1)
    assert z.std().item() == pytest.approx(1, abs=0.15)
    assert abs(z.mean().item()) < 0.15


def test_an_interrupted_recipe_resumes_exactly(finished, tmp_path, monkeypatch):
    recipe = TinyRecipe(tmp_path / "parts")
    for task in ("autoencoder", "clip", "curriculum", "diffusion"):
        monkeypatch.setattr("daguerre.training.loop._stop_signals", stop_after(3, tmp_path / "parts" / task))
        with pytest.raises(Interrupted, match="step 3 of 4"):
            run(recipe)
    monkeypatch.undo()
    again = run(recipe)
    one, two = weights(daguerre.load(finished)), weights(daguerre.load(again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("trains_text", "learned"), [(False, {"unet"}), (True, {"unet", "text"})])
def test_a_finished_model_can_be_fine_tuned(finished, tmp_path, trains_text, learned):
    plan = replace(PLAN, diffusion=replace(PLAN.diffusion, trains_text=trains_text))
    again = run(TinyRecipe(tmp_path / "more", model=str(finished)), plan)
    assert not (again.parent / "curriculum").exists()  # it would make a trained model forget relations
    before, after = weights(daguerre.load(finished)), weights(daguerre.load(again))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == learned


def stop_after(steps: int, folder: Path):
    """Replaces signals: requests a stop after `steps` steps of the task that writes to `folder`."""
    from contextlib import contextmanager

    @contextmanager
    def signals():
        calls = 0

        def stop_requested() -> bool:
            nonlocal calls
            calls += 1
            return folder.exists() and not (folder.parent / NEXT[folder.name]).exists() and calls == steps

        yield stop_requested

    return signals


NEXT = {"autoencoder": "clip", "clip": "curriculum", "curriculum": "diffusion", "diffusion": "model"}


def test_a_folder_of_another_recipe_is_refused(finished):
    with pytest.raises(DaguerreError, match=r"belongs to a run with seed 0, not 5\. .* choose another --out"):
        run(TinyRecipe(finished.parent, seed=5))


def test_a_missing_model_leaves_no_files(tmp_path):
    """Otherwise the folder would keep the wrong name and refuse the right one."""
    with pytest.raises(DaguerreError, match="no model 'none'"):
        run(TinyRecipe(tmp_path / "out", model="none"))
    assert not (tmp_path / "out").exists()


def test_steps_of_a_preset_can_be_changed():
    plan = with_options(PRESETS["cpu"], TinyRecipe(autoencoder_steps=7, diffusion_steps=9))
    assert (plan.autoencoder.loop.max_train_steps, plan.diffusion.loop.max_train_steps) == (7, 9)
    assert plan.clip == PRESETS["cpu"].clip


@pytest.mark.parametrize(
    ("base", "channels", "blocks", "depth", "heads"),
    [
        (UNetConfig(), (64, 128), 1, (1, 1), (1, 1)),  # heads of SD 1 are 40 and 80 wide
        (SD2, (128, 192, 256, 256, 320), 2, (1, 1, 1, 0, 0), (2, 3, 4, 4, 5)),  # heads of 64; a fifth level without attention
        (SD2, (), 3, SD2.depth, SD2.heads),
    ],
)
def test_a_unet_of_another_size_keeps_attention_and_head_width(base, channels, blocks, depth, heads):
    config = resize_unet(base, channels, blocks)
    assert (config.channels, config.blocks, config.depth, config.heads) == (channels or base.channels, blocks, depth, heads)
    with torch.device("meta"):
        x = torch.empty(2, 4, 8, 8)
        assert UNet(config)(x, torch.empty(2), Conditioning(context=torch.empty(2, 3, base.context_width))).shape == x.shape


def test_an_impossible_unet_size_is_refused():
    for channels, blocks, message in (((50,), None, "multiple of 32"), ((0,), None, "multiple of 32"), ((), 0, "unet_blocks is 0")):
        with pytest.raises(DaguerreError, match=message):
            resize_unet(UNetConfig(), channels, blocks)
    with pytest.raises(DaguerreError, match="add --from-scratch"):
        TextToImageRecipe(Path("x"), unet_channels=(64,))
    with pytest.raises(DaguerreError, match="keeps its size"):
        run(TinyRecipe(Path("never"), model="emoji", unet_blocks=1))


def test_a_preset_with_another_unet():
    plan = with_options(PRESETS["cpu"], TinyRecipe(unet_channels=(64, 128, 128), unet_blocks=2))
    assert plan.diffusion.unet == replace(
        PRESETS["cpu"].diffusion.unet, channels=(64, 128, 128), blocks=2, depth=(1, 1, 1), heads=(1, 2, 2)
    )


def test_the_gpu_preset_is_refused_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DaguerreError, match="use --preset cpu"):
        run_emoji(EmojiRecipe(tmp_path / "out", preset="gpu"))
    assert not (tmp_path / "out").exists()


def test_the_embedded_model_has_at_most_64_mb():
    """In half precision, for both presets."""
    from daguerre.models.autoencoder_kl import AutoencoderKL
    from daguerre.models.clip import CLIPText
    from daguerre.models.unet import UNet

    for plan in PRESETS.values():
        with torch.device("meta"):
            parts = [UNet(plan.diffusion.unet), AutoencoderKL(plan.autoencoder.model), CLIPText(plan.clip.text)]
        assert sum(2 * p.numel() for part in parts for p in part.parameters()) < 64 * 2**20


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} image")
    return folder


@pytest.mark.parametrize("changes", [{}, {"from_scratch": True, "cache": False}])
def test_text_to_image_trains_only_the_unet(finished, folder, tmp_path, changes):
    loop = replace(LOOP, batch_size=4, sample_every=0, mixed_precision="no", gradient_checkpointing=bool(changes))
    recipe = TextToImageRecipe(folder, tmp_path / "out", model=str(finished), loop=loop, **changes)
    before, after = weights(daguerre.load(finished)), weights(daguerre.load(run_text_to_image(recipe)))
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("unet"))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("unet"))


def test_text_to_image_lowers_the_loss(finished, folder, tmp_path):
    import json

    loop = replace(LOOP, max_train_steps=60, batch_size=8, learning_rate=4e-3, sample_every=0, log_every=20)
    run_text_to_image(TextToImageRecipe(folder, tmp_path / "out", model=str(finished), from_scratch=True, loop=loop))
    losses = [json.loads(line)["unet"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] * 0.8


def test_an_empty_folder_is_refused(tmp_path, finished):
    (tmp_path / "none").mkdir()
    with pytest.raises(DaguerreError, match="none"):
        run_text_to_image(TextToImageRecipe(tmp_path / "none", tmp_path / "out", model=str(finished)))


def test_every_recipe_has_help_and_a_run_function():
    assert {"emoji", "shapes", "text-to-image"} <= RECIPES.keys()
    assert all(recipe.summary and recipe.options.__doc__ and callable(recipe.run) for recipe in RECIPES.values())
