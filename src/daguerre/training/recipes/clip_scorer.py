"""The CLIP of `daguerre evaluate`: another size and seed than the model's own, trained on all pairs, including the held-out ones."""

from dataclasses import replace
from pathlib import Path

from daguerre.data import EmojiDataset, EmojiMix
from daguerre.training.options.latent_diffusion import ClipScorerRecipe
from daguerre.training.processes import rank
from daguerre.training.recipes.emoji import CPU
from daguerre.training.recipes.stages import ClipPlan, tiny_text, tiny_vision, train_clip
from daguerre.training.run_identity import record_run
from daguerre.weights import save_clip

SCORER_PLAN = ClipPlan(
    tiny_text(vocab_size=3072, width=192, layers=3),
    tiny_vision(size=64, patch=8, width=192, layers=4, projection=192),  # each half of a pair fills several patches
    replace(CPU.clip.loop, max_train_steps=6200),
)
SCORER_MIX = EmojiMix(recoloured=0.4, background=0.33, pair=0.25)  # colours and relations as often as names


def run(recipe: ClipScorerRecipe) -> Path:
    """Train, and return the directory of the finished CLIP."""
    source = EmojiDataset(recipe.resolution, split="all", mix=SCORER_MIX)
    steps = SCORER_PLAN.loop.max_train_steps if recipe.max_train_steps is None else recipe.max_train_steps
    loop = replace(SCORER_PLAN.loop, max_train_steps=steps)
    vision = replace(SCORER_PLAN.vision, size=recipe.resolution, patch=recipe.resolution // 8)
    record_run(recipe.out, "ClipScorerRecipe", source.key, size=recipe.resolution, seed=recipe.seed)
    clip, tokenizer = train_clip(replace(SCORER_PLAN, loop=loop, vision=vision), source, recipe.resolution, recipe.seed, recipe.out)
    if rank() == 0:
        save_clip(clip, tokenizer, recipe.out / "model")
    return recipe.out / "model"
