"""`train text-to-image` starts from a trained model and lowers its loss on the given images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image, ImageDraw

import daguerre
from daguerre.data import BatchLoader, FolderDataset
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.options.text_to_image import TextToImageRecipe
from daguerre.training.recipes.text_to_image import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images that are not in the embedded model's training data, with captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, (colour, ground) in enumerate((("red", "teal"), ("navy", "gold"), ("white", "purple"), ("black", "lime"))):
        image = Image.new("RGB", (64, 64), ground)
        ImageDraw.Draw(image).rectangle((16, 8, 40, 56), fill=colour)
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} door in a {ground} wall")
    return folder


@torch.no_grad()
def mean_error(model: LatentDiffusion, folder: Path) -> float:
    """The mean squared error on the folder's images with their captions, with the same noise each time."""
    task = DiffusionTask(model, DiffusionLoss(caption_dropout=0), model.conditioner.encode_captions, ["x"])  # pyright: ignore
    batch = BatchLoader(FolderDataset(folder, model.sample_size), 16, 0, model.sample_size).batch(0)
    ((_, loss, _),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(0), len(batch)), 0)
    return loss.item()


@pytest.mark.long
def test_fine_tuning_the_embedded_model_lowers_its_error(folder: Path, tmp_path: Path):
    loop = LoopConfig(
        max_train_steps=10, batch_size=4, learning_rate=4e-4, lr_warmup_steps=2, ema_decay=0, mixed_precision="bf16", sample_every=0
    )
    before = mean_error(daguerre.load(), folder)  # pyright: ignore[reportArgumentType]
    out = run(TextToImageRecipe(folder, tmp_path / "doors", crops_per_image=1, loop=loop))
    after = mean_error(daguerre.load(out), folder)  # pyright: ignore[reportArgumentType]
    print(f"mean squared error {before:.4f} before, {after:.4f} after")
    assert after < 0.9 * before


def test_nested_options_have_flat_flags():
    given = ["--data", "x", "--model", "y", "--max-train-steps", "7", "--batch-size", "2", "--snr-gamma", "5", "--no-cache"]
    recipe = tyro.cli(TextToImageRecipe, args=given)
    assert (recipe.model, recipe.loop.max_train_steps, recipe.loop.batch_size, recipe.loss.snr_gamma, recipe.cache) == (
        "y",
        7,
        2,
        5.0,
        False,
    )
    assert replace(recipe.loop, max_train_steps=2000, batch_size=16) == tyro.cli(TextToImageRecipe, args=["--data", "x"]).loop
