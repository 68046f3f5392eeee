"""The shapes recipe's own plan: what it trains can be written and opened, and what it shows is said as its pictures are."""

from pathlib import Path

from daguerre.data.shapes import COLOURS, COUNTS, PLACES, SHAPES, SIZES
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText
from daguerre.text import TextConditioner, train_tokenizer
from daguerre.training.recipes.shapes import PLAN, SHOWN
from daguerre.training.recipes.stages import fresh_model
from daguerre.weights import load, save


def test_its_model_is_saved_and_opened(tmp_path: Path):
    tokenizer = train_tokenizer(SHOWN, PLAN.clip.text.vocab_size, PLAN.clip.text.length)
    conditioner = TextConditioner(tokenizer, CLIPText(PLAN.clip.text))
    model = fresh_model(PLAN.diffusion, AutoencoderKL(PLAN.autoencoder.model), conditioner, PLAN.size, 0, "shapes")
    assert load(save(model, tmp_path / "shapes")).unet.config == PLAN.diffusion.unet


def test_the_shown_prompts_are_in_the_sources_words():
    fixed = ["a", "an", "two", "on", "to", "the", "left", "of", "background"]
    known = {*fixed, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *COUNTS.values(), *SIZES, *" ".join(PLACES).split()}
    assert not {word for prompt in SHOWN for word in prompt.split()} - known
