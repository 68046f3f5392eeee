"""The shapes recipe's own plan: what it trains can be written and opened, and what it shows is said as its pictures are."""

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
def fresh() -> LatentDiffusion:
    tokenizer = train_tokenizer(
        ShapesDataset(SHAPES_PLAN.size).captions(200, seed=0), SHAPES_PLAN.clip.text.vocab_size, SHAPES_PLAN.clip.text.length
    )
    conditioner = TextConditioner(tokenizer, CLIPText(SHAPES_PLAN.clip.text))
    return init_model(SHAPES_PLAN.diffusion, AutoencoderKL(SHAPES_PLAN.autoencoder.model), conditioner, SHAPES_PLAN.size, 0, "shapes")


def test_its_model_is_saved_and_opened(fresh: LatentDiffusion, tmp_path: Path):
    assert load_diffusion(save(fresh, tmp_path / "shapes")).unet.config == SHAPES_PLAN.diffusion.unet


def test_its_attention_is_taught_where_the_shapes_are(fresh: LatentDiffusion, tmp_path: Path):
    """The first steps of the last stage, as the plan has them."""
    plan = replace(SHAPES_PLAN.diffusion, pool=64, loop=replace(SHAPES_PLAN.diffusion.loop, steps=2, log_every=1, sample_every=0))
    train_diffusion(plan, fresh, ShapesDataset(SHAPES_PLAN.size), 0, tmp_path, SHAPES_PREVIEW_PROMPTS)
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert plan.grounding * first["astray"] == pytest.approx(first["unet"] - first["mse"], abs=1e-5)
    assert 0 < second["astray"] < 1


def test_the_shown_prompts_are_in_the_sources_words():
    fixed = ["a", "an", "two", "on", "to", "the", "left", "of", "background"]
    known = {*fixed, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *COUNTS.values(), *SIZES, *" ".join(POSITIONS).split()}
    assert not {word for prompt in SHAPES_PREVIEW_PROMPTS for word in prompt.split()} - known
