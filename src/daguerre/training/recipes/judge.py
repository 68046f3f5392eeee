"""The judge: a second CLIP, of other size and seed than the model's, that also sees the pairs held out from the model's training."""

from dataclasses import replace
from pathlib import Path

from daguerre.data import EmojiDataset, EmojiMix
from daguerre.training.config import JudgeRecipe, LoopConfig
from daguerre.training.processes import rank
from daguerre.training.recipes.emoji import CPU
from daguerre.training.recipes.latent_diffusion import record_run
from daguerre.training.recipes.stages import ClipPlan, tiny_text, tiny_vision, train_clip
from daguerre.weights import save_clip

JUDGE_PLAN = ClipPlan(
    tiny_text(vocab_size=3072, width=192, layers=3),
    tiny_vision(size=64, patch=8, width=192, layers=4, projection=192),  # patches that the halves of a pair fill several of
    replace(CPU.clip.loop, max_train_steps=6200),
)
JUDGE_MIX = EmojiMix(recoloured=0.4, background=0.33, pair=0.25)  # it is asked about these as often as about things


def run(recipe: JudgeRecipe) -> Path:
    """Train, and return the judge's folder."""
    source = EmojiDataset(recipe.resolution, split="all", mix=JUDGE_MIX)
    loop: LoopConfig = (
        JUDGE_PLAN.loop if recipe.max_train_steps is None else replace(JUDGE_PLAN.loop, max_train_steps=recipe.max_train_steps)
    )
    plan = replace(JUDGE_PLAN, loop=loop, vision=replace(JUDGE_PLAN.vision, size=recipe.resolution, patch=recipe.resolution // 8))
    record_run(recipe.out, "JudgeRecipe", source.key, size=recipe.resolution, seed=recipe.seed)
    clip, tokenizer = train_clip(plan, source, recipe.resolution, recipe.seed, recipe.out)
    if rank() == 0:
        save_clip(clip, tokenizer, recipe.out / "model")
    return recipe.out / "model"
