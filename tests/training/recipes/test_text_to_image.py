"""`train text-to-image --from MODEL` goes on from what the model knows, and knows the folder's pictures better afterwards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image, ImageDraw

import daguerre
from daguerre.data import BatchLoader, FolderDataset
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.config import DiffusionLoss, LoopConfig, TextToImageRecipe
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.recipes.text_to_image import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures that the embedded model has never seen, each with its caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (colour, ground) in enumerate((("red", "teal"), ("navy", "gold"), ("white", "purple"), ("black", "lime"))):
        picture = Image.new("RGB", (64, 64), ground)
        ImageDraw.Draw(picture).rectangle((16, 8, 40, 56), fill=colour)
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} door in a {ground} wall")
    return folder


@torch.no_grad()
def score(model: LatentDiffusion, folder: Path) -> float:
    """The mean squared error on the folder's pictures under their captions, at the same noise each time."""
    stage = DiffusionTask(model, DiffusionLoss(caption_dropout=0), model.conditioner.captions, ["x"])  # pyright: ignore
    batch = BatchLoader(FolderDataset(folder, model.sample_size), 16, 0, model.sample_size).batch(0)
    ((_, loss, _),) = stage.losses(batch, torch.Generator().manual_seed(0), 0)
    return loss.item()


@pytest.mark.long
def test_the_embedded_model_knows_the_pictures_better_afterwards(folder: Path, tmp_path: Path):
    loop = LoopConfig(
        max_train_steps=10, batch_size=4, learning_rate=4e-4, lr_warmup_steps=2, ema_decay=0, mixed_precision="bf16", sample_every=0
    )
    before = score(daguerre.load(), folder)  # pyright: ignore[reportArgumentType]
    out = run(TextToImageRecipe(folder, tmp_path / "doors", crops_per_image=1, loop=loop))
    after = score(daguerre.load(out), folder)  # pyright: ignore[reportArgumentType]
    print(f"mean squared error {before:.4f} before, {after:.4f} after")
    assert after < 0.9 * before


def test_its_options_are_plain():
    given = ["--data", "x", "--from", "y", "--steps", "7", "--batch-size", "2", "--min-snr", "5", "--no-cache"]
    recipe = tyro.cli(TextToImageRecipe, args=given)
    assert (recipe.model, recipe.loop.max_train_steps, recipe.loop.batch_size, recipe.loss.snr_gamma, recipe.cache) == (
        "y",
        7,
        2,
        5.0,
        False,
    )
    assert replace(recipe.loop, steps=2000, batch_size=16) == tyro.cli(TextToImageRecipe, args=["--data", "x"]).loop
