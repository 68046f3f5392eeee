"""First stages by recipe, tiny: every kind ends in a folder that opens, resumes to the same bits; impossible wishes are told at once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from daguerre.data import BatchLoader, ShapesDataset
from daguerre.errors import DaguerreError
from daguerre.training.lineage_options import (
    AutoencoderLoss,
    DiscriminatorOptions,
    FirstStageRecipe,
    KLRecipe,
    PlainRecipe,
    VariationalRecipe,
    VQGANRecipe,
    VQVAERecipe,
)
from daguerre.training.loop import LoopConfig
from daguerre.training.recipes.first_stage import open_dataset, run
from daguerre.weights import load_first_stage

LOOP = LoopConfig(max_train_steps=4, batch_size=4, lr_warmup_steps=1, lr_decay=0.0, log_every=2, sample_every=4, checkpoint_every=2)
ADVERSARIAL = AutoencoderLoss(adversarial=0.5, adversarial_start=2, adversarial_ramp=1)
CRITIC = DiscriminatorOptions(channels=8, layers=1)
TINY = {"data": "shapes", "size": 16, "f": 2, "width": 8, "loop": LOOP}
RECIPES: dict[str, FirstStageRecipe] = {
    "autoencoder": PlainRecipe(**TINY),
    "vae": VariationalRecipe(**TINY),
    "kl": KLRecipe(**TINY, loss=ADVERSARIAL, discriminator=CRITIC),
    "vqvae": VQVAERecipe(**TINY, codebook_size=16, code_width=4, codebook_start=1),
    "vqgan": VQGANRecipe(**TINY, codebook_size=16, code_width=4, codebook_start=1, loss=ADVERSARIAL, discriminator=CRITIC),
    "gumbel": VQGANRecipe(
        **TINY, codebook_size=16, code_width=4, codebook="gumbel", temperature_steps=3, loss=ADVERSARIAL, discriminator=CRITIC
    ),
}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_first_stage(folder).state_dict()


@pytest.mark.parametrize("kind", RECIPES)
def test_every_kind_ends_in_a_folder_that_opens_and_has_unit_variance(kind: str, tmp_path: Path):
    folder = run(replace(RECIPES[kind], out=tmp_path))
    model = load_first_stage(folder)
    x = BatchLoader(ShapesDataset(16), 64, seed=9).batch(0).x
    with torch.no_grad():
        z = model.encode(x)
        assert model.decode(z).shape == x.shape
    assert z.std().item() == pytest.approx(1, abs=0.2)
    assert (tmp_path / "samples" / "000004.png").is_file()


@pytest.mark.parametrize("kind", ["vqgan", "gumbel"])
def test_stopped_before_the_critic_and_run_again_it_ends_in_the_same_bits(kind: str, tmp_path: Path):
    first = replace(RECIPES[kind], loop=replace(LOOP, steps=3), out=tmp_path / "parts")
    run(first)
    whole, parts = run(replace(RECIPES[kind], out=tmp_path / "whole")), run(replace(first, loop=LOOP))
    assert all(torch.equal(value, state(parts)[name]) for name, value in state(whole).items())


def test_the_features_that_it_was_trained_with_are_part_of_its_identity(tmp_path: Path):
    eyes = [run(replace(RECIPES["autoencoder"], out=tmp_path / f"eyes {seed}", loop=replace(LOOP, seed=seed))) for seed in (0, 1)]
    recipe = replace(RECIPES["vqgan"], out=tmp_path / "out", perceptual=(eyes[0],), loop=replace(LOOP, steps=3))
    run(recipe)
    with pytest.raises(DaguerreError, match="perceptual"):
        run(replace(recipe, perceptual=(eyes[1],), loop=LOOP))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 18, "f": 4}, "size is 18; for f 4 it must be a multiple of 4"),
        ({"loop": replace(LOOP, steps=2)}, "enters at step 2 and has its full weight at step 3, but there are only 2 steps"),
        ({"codebook": "gumbel", "cooling": 9}, "falls for 9 steps, but there are only 4"),
        ({"enters": 4}, "takes part from step 4 on, but there are only 4"),
        ({"width": 6}, "width is 6; it must be a multiple of 4"),
        ({"loss": replace(ADVERSARIAL, perceptual=1.0)}, "name its weights with --perceptual"),
    ],
)
def test_impossible_wishes_are_told_before_anything_is_made(changes: dict[str, object], sentence: str):
    with pytest.raises(DaguerreError, match=sentence):
        replace(RECIPES["vqgan"], **changes)


def test_pictures_need_no_captions_and_what_is_no_folder_is_named(tmp_path: Path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    assert len(open_dataset(str(tmp_path), 16)) == 1
    with pytest.raises(DaguerreError, match="no folder 'nowhere'; the data is a folder of pictures, or shapes or emoji"):
        open_dataset("nowhere", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DaguerreError, match="No pictures in"):
        open_dataset(str(tmp_path / "empty"), 16)
