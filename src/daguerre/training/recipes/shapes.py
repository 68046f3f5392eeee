"""The whole road in small, for two cores: the three stages on shapes that the program draws."""

from dataclasses import replace
from pathlib import Path

from daguerre.data import ShapesSource
from daguerre.training.options import ShapesRecipe
from daguerre.training.recipes.emoji import CPU
from daguerre.training.recipes.run import run_latent_recipe
from daguerre.training.recipes.stages import AutoencoderPlan, ClipPlan, DiffusionPlan, Plan, tiny_text, tiny_vision

SIZE = 32
PLAN = Plan(
    size=SIZE,
    autoencoder=AutoencoderPlan(
        replace(CPU.autoencoder.model, latent_channels=8, channels=(32, 64, 96), norm_groups=4),
        replace(CPU.autoencoder.loop, steps=1200, sample_every=300, checkpoint_every=300),
        CPU.autoencoder.loss,
    ),
    clip=ClipPlan(
        tiny_text(vocab_size=640, width=128, layers=2),
        tiny_vision(SIZE, patch=4, width=128, layers=3, projection=128),
        replace(CPU.clip.loop, steps=600, batch_size=128, checkpoint_every=200),
    ),
    diffusion=DiffusionPlan(
        replace(CPU.diffusion.unet, in_channels=8, out_channels=8, channels=(96, 128), heads=(2, 2), context_width=128),
        replace(CPU.diffusion.loop, steps=2500, batch_size=32, ema=0.997, sample_every=500, checkpoint_every=250),
        CPU.diffusion.loss,
        pool=20_000,
    ),
)
SHOWN = (
    "a red circle",
    "a small blue square on a yellow background",
    "two green triangles",
    "a purple star at the top left",
    "a big orange circle",
    "three small red squares",
    "a yellow triangle on a black background",
    "a blue circle at the bottom",
)


def run(recipe: ShapesRecipe) -> Path:
    """Train, and return the folder of the finished model."""
    return run_latent_recipe(recipe, PLAN, ShapesSource(SIZE), SHOWN)
