"""The plan of the shapes recipe: its model can be saved and loaded, its attention is grounded, its preview prompts use known words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from daguerre.conditioning import TextConditioner, train_tokenizer
from daguerre.data import ShapesDataset
from daguerre.data.shapes import COLOURS, COUNTS, POSITIONS, SHAPES, SIZES
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.recipes.shapes import SHAPES_PLAN, SHAPES_PREVIEW_PROMPTS
from daguerre.training.recipes.stages import init_model, train_diffusion
from daguerre.weights import load_diffusion, save


@pytest.fixture
def untrained() -> LatentDiffusion:
    tokenizer = train_tokenizer(
        ShapesDataset(SHAPES_PLAN.size).captions(200, seed=0), SHAPES_PLAN.clip.text.vocab_size, SHAPES_PLAN.clip.text.length
    )
    conditioner = TextConditioner(tokenizer, CLIPText(SHAPES_PLAN.clip.text))
    return init_model(SHAPES_PLAN.diffusion, AutoencoderKL(SHAPES_PLAN.autoencoder.model), conditioner, SHAPES_PLAN.size, 0, "shapes")


def test_the_model_can_be_saved_and_loaded(untrained: LatentDiffusion, tmp_path: Path):
    assert load_diffusion(save(untrained, tmp_path / "shapes")).unet.config == SHAPES_PLAN.diffusion.unet


def test_the_grounding_loss_is_part_of_the_diffusion_loss(untrained: LatentDiffusion, tmp_path: Path):
    """The first steps of the diffusion task."""
    plan = replace(
        SHAPES_PLAN.diffusion, cached_samples=64, loop=replace(SHAPES_PLAN.diffusion.loop, max_train_steps=2, log_every=1, sample_every=0)
    )
    train_diffusion(plan, untrained, ShapesDataset(SHAPES_PLAN.size), 0, tmp_path, SHAPES_PREVIEW_PROMPTS)
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert plan.grounding * first["grounding"] == pytest.approx(first["unet"] - first["mse"], abs=1e-5)
    assert 0 < second["grounding"] < 1


def test_the_preview_prompts_use_the_words_of_the_captions():
    fixed = ["a", "an", "two", "on", "to", "the", "left", "of", "background"]
    known = {*fixed, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *COUNTS.values(), *SIZES, *" ".join(POSITIONS).split()}
    assert not {word for prompt in SHAPES_PREVIEW_PROMPTS for word in prompt.split()} - known
