"""First-task recipes at a tiny size: every kind saves a model that loads, resumes exactly, and refuses impossible options."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from daguerre.data import BatchLoader, ShapesDataset
from daguerre.data.catalog import open_dataset
from daguerre.errors import DaguerreError
from daguerre.training.config import AutoencoderLoss, LoopConfig
from daguerre.training.datasets.images import open_training_images
from daguerre.training.options.first_stage import AutoencoderRecipe, FirstStageRecipe, KLRecipe, VAERecipe, VQGANRecipe, VQVAERecipe
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.recipes.first_stage import run
from daguerre.weights import load_first_stage

LOOP = LoopConfig(max_train_steps=4, batch_size=4, lr_warmup_steps=1, lr_decay=0.0, log_every=2, sample_every=4, checkpoint_every=2)
ADVERSARIAL = AutoencoderLoss(adversarial_weight=0.5, adversarial_start=2, adversarial_ramp=1)
TINY = {"data": "shapes", "resolution": 16, "f": 2, "base_channels": 8, "loop": LOOP}
GAN = {"loss": ADVERSARIAL, "discriminator_channels": 8, "discriminator_layers": 1}
RECIPES: dict[str, FirstStageRecipe] = {
    "autoencoder": AutoencoderRecipe(**TINY),
    "vae": VAERecipe(**TINY),
    "kl": KLRecipe(**TINY, **GAN),
    "vqvae": VQVAERecipe(**TINY, codebook_size=16, code_dim=4, codebook_start=1),
    "vqgan": VQGANRecipe(**TINY, codebook_size=16, code_dim=4, codebook_start=1, **GAN),
    "gumbel": VQGANRecipe(**TINY, codebook_size=16, code_dim=4, codebook="gumbel", temperature_steps=3, **GAN),
}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_first_stage(folder).state_dict()


@pytest.mark.parametrize("kind", RECIPES)
def test_every_kind_saves_a_model_with_unit_variance_latents(kind: str, tmp_path: Path):
    folder = run(replace(RECIPES[kind], out=tmp_path))
    model = load_first_stage(folder)
    x = BatchLoader(ShapesDataset(16), 64, seed=9).batch(0).x
    with torch.no_grad():
        z = model.encode(x)
        assert model.decode(z).shape == x.shape
    assert z.std().item() == pytest.approx(1, abs=0.2)
    assert (tmp_path / "samples" / "000004.png").is_file()


def test_epochs_set_the_number_of_steps(tmp_path: Path):
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 90, 90)).save(tmp_path / f"{i}.png")
    epochs = replace(LOOP, num_train_epochs=1.5, sample_every=0)
    recipe = replace(RECIPES["vqvae"], data=str(tmp_path), out=tmp_path / "out", loop=epochs)
    run(recipe)
    assert json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])["step"] == 3  # ceil(1.5 · 6 / 4)
    with pytest.raises(DaguerreError, match="only 3 steps"):
        run(replace(recipe, out=tmp_path / "late", codebook_start=3))
    with pytest.raises(DaguerreError, match="use --max-train-steps"):
        run(replace(recipe, data="shapes", out=tmp_path / "rendered"))
    with pytest.raises(DaguerreError, match="num_train_epochs is 0"):
        replace(LOOP, num_train_epochs=0)


@pytest.mark.parametrize("kind", ["vqgan", "gumbel"])
def test_a_run_stopped_before_the_discriminator_starts_resumes_exactly(kind: str, tmp_path: Path):
    first = replace(RECIPES[kind], loop=replace(LOOP, max_train_steps=3), out=tmp_path / "parts")
    run(first)
    whole, parts = run(replace(RECIPES[kind], out=tmp_path / "whole")), run(replace(first, loop=LOOP))
    assert all(torch.equal(value, state(parts)[name]) for name, value in state(whole).items())


def test_the_perceptual_network_is_part_of_the_runs_identity(tmp_path: Path):
    encoder = [run(replace(RECIPES["autoencoder"], out=tmp_path / f"encoder {seed}", loop=replace(LOOP, seed=seed))) for seed in (0, 1)]
    recipe = replace(RECIPES["vqgan"], out=tmp_path / "out", perceptual=(encoder[0],), loop=replace(LOOP, max_train_steps=3))
    run(recipe)
    with pytest.raises(DaguerreError, match="perceptual"):
        run(replace(recipe, perceptual=(encoder[1],), loop=LOOP))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"resolution": 18, "f": 4}, "resolution is 18; for f 4 it must be a multiple of 4"),
        ({"loop": replace(LOOP, max_train_steps=2)}, "starts at step 2 and has its full weight at step 3, but there are only 2 steps"),
        ({"codebook": "gumbel", "temperature_steps": 9}, "falls over 9 steps, but there are only 4"),
        ({"codebook_start": 4}, "starts at step 4, but there are only 4"),
        ({"base_channels": 6}, "base_channels is 6; it must be a multiple of 4"),
        ({"loss": replace(ADVERSARIAL, perceptual_weight=1.0)}, "give its weights with --perceptual"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, object], sentence: str):
    with pytest.raises(DaguerreError, match=sentence):
        replace(RECIPES["vqgan"], **changes)


def test_images_need_no_captions_and_a_missing_directory_is_refused(tmp_path: Path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    assert len(open_dataset(str(tmp_path), 16)) == 1
    with pytest.raises(DaguerreError, match="no directory 'nowhere'; give a directory of images, or shapes or emoji"):
        open_dataset("nowhere", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DaguerreError, match=r"No (images|pictures) in"):
        open_dataset(str(tmp_path / "empty"), 16)


@pytest.mark.parametrize("kind", ["vae", "vqgan"])
def test_held_out_images_are_measured_and_not_trained_on(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "images").mkdir()
    for i in range(24):
        Image.new("RGB", (20, 30), (10 * i, 90, 30)).save(tmp_path / "images" / f"{i}.png")
    options = TrainingImageOptions(crop="pad", validation_fraction=0.3)
    loop = replace(LOOP, log_every=2, validation_every=2)
    recipe = replace(RECIPES[kind], data=str(tmp_path / "images"), out=tmp_path / "out", images=options, loop=loop)
    run(recipe)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all("validation autoencoder" in line and "validation psnr" in line for line in lines)
    images = open_training_images(recipe.data, recipe.resolution, options)
    printed = capsys.readouterr().err
    assert images.held_out is not None
    assert f"validation: {len(images.held_out)} of these images, chosen by a hash; training: {len(images.trained)}\n" in printed
    assert f"epochs: {loop.max_train_steps * loop.batch_size / len(images.trained):.3g}\n" in printed
    with pytest.raises(DaguerreError, match="belongs to a run with source"):
        run(replace(recipe, images=replace(options, validation_fraction=0.6)))
