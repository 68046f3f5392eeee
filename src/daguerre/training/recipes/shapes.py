"""A complete small model for two CPU cores: autoencoder, CLIP and diffusion on rendered shapes."""

from dataclasses import replace
from pathlib import Path

from daguerre.data import ShapesDataset
from daguerre.training.config import AutoencoderLoss, DiffusionLoss
from daguerre.training.options.latent_diffusion import ShapesRecipe
from daguerre.training.recipes.emoji import CPU
from daguerre.training.recipes.latent_diffusion import run_latent_recipe
from daguerre.training.recipes.stages import AutoencoderPlan, ClipPlan, DiffusionPlan, LatentDiffusionPlan, tiny_text, tiny_vision

SIZE = 32
SHAPES_PLAN = LatentDiffusionPlan(
    size=SIZE,
    autoencoder=AutoencoderPlan(
        replace(CPU.autoencoder.model, latent_channels=8, channels=(16, 32, 64), norm_groups=4),
        replace(CPU.autoencoder.loop, max_train_steps=1000, learning_rate=1.5e-3, ema_decay=0.99, sample_every=500),
        AutoencoderLoss(kl_weight=1e-3),
    ),
    clip=ClipPlan(
        # One layer and few tokens: the meaning of a word stays at its token and does not spread to the padding.
        tiny_text(vocab_size=1024, width=128, layers=1, length=24),
        tiny_vision(SIZE, patch=8, width=128, layers=3, projection=128),
        replace(CPU.clip.loop, max_train_steps=300, batch_size=128, checkpoint_every=100),
    ),
    diffusion=DiffusionPlan(
        # One level: every attention layer works on all 8×8 positions.
        replace(CPU.diffusion.unet, in_channels=8, out_channels=8, channels=(128,), depth=(1,), heads=(2,), context_width=128),
        replace(CPU.diffusion.loop, max_train_steps=3200, batch_size=16, ema_decay=0.998, sample_every=1000, checkpoint_every=250),
        DiffusionLoss(shift=3.0),
        cached_samples=8192,
        trains_text=True,
        grounding=0.05,
    ),
)
SHAPES_PREVIEW_PROMPTS = (
    "a red circle",
    "a small blue square on a yellow background",
    "two green triangles",
    "a purple star in the top left corner",
    "a large orange circle",
    "three red hearts",
    "a yellow ring to the left of a black cross",
    "a pink diamond at the bottom",
)


def run(recipe: ShapesRecipe) -> Path:
    """Train, and return the directory of the finished model."""
    return run_latent_recipe(recipe, SHAPES_PLAN, ShapesDataset(SIZE), SHAPES_PREVIEW_PROMPTS)
