"""`train text-to-image --from MODEL` goes on from what the model knows, and knows the folder's pictures better afterwards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image, ImageDraw

import daguerre
from daguerre.data import Batches, FolderSource
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.config import DiffusionLoss, LoopConfig, TextToImageRecipe
from daguerre.training.objectives.diffusion import DiffusionStage
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
    stage = DiffusionStage(model, DiffusionLoss(dropout=0), model.conditioner.captions, ["x"])  # pyright: ignore
    batch = Batches(FolderSource(folder, model.size), 16, 0, model.size).batch(0)
    ((_, loss, _),) = stage.losses(batch, torch.Generator().manual_seed(0), 0)
    return loss.item()


def test_the_embedded_model_knows_the_pictures_better_afterwards(folder: Path, tmp_path: Path):
    loop = LoopConfig(steps=10, batch_size=4, learning_rate=4e-4, warmup=2, ema=0, precision="bf16", sample_every=0)
    before = score(daguerre.load(), folder)  # pyright: ignore[reportArgumentType]
    out = run(TextToImageRecipe(folder, tmp_path / "doors", views=1, loop=loop))
    after = score(daguerre.load(out), folder)  # pyright: ignore[reportArgumentType]
    print(f"mean squared error {before:.4f} before, {after:.4f} after")
    assert after < 0.9 * before


def test_its_options_are_plain():
    given = ["--data", "x", "--from", "y", "--steps", "7", "--batch-size", "2", "--min-snr", "5", "--no-cache"]
    recipe = tyro.cli(TextToImageRecipe, args=given)
    assert (recipe.base, recipe.loop.steps, recipe.loop.batch_size, recipe.loss.min_snr, recipe.cache) == ("y", 7, 2, 5.0, False)
    assert replace(recipe.loop, steps=2000, batch_size=16) == tyro.cli(TextToImageRecipe, args=["--data", "x"]).loop
