"""The judge: a second CLIP, of other seed than the model's, and for emoji of other size, that also sees what the model's training never
shows."""

from dataclasses import replace
from pathlib import Path

from daguerre.data import EmojiMix, EmojiSource, ShapesSource
from daguerre.training.options import JudgeRecipe, LoopConfig
from daguerre.training.processes import rank
from daguerre.training.recipes import shapes
from daguerre.training.recipes.emoji import CPU
from daguerre.training.recipes.run import remember
from daguerre.training.recipes.stages import ClipPlan, tiny_text, tiny_vision, train_clip
from daguerre.weights import save_clip

PLAN = ClipPlan(
    tiny_text(vocab_size=3072, width=192, layers=3),
    tiny_vision(size=64, patch=8, width=192, layers=4, projection=192),  # patches that the halves of a pair fill several of
    replace(CPU.clip.loop, steps=4500),
)
SHAPES = replace(shapes.PLAN.clip, loop=replace(shapes.PLAN.clip.loop, steps=1200))
MIX = EmojiMix(recoloured=0.4, background=0.25, pair=0.35)  # it is asked about these as often as about things


def run(recipe: JudgeRecipe) -> Path:
    """Train, and return the judge's folder."""
    plan = PLAN if recipe.data == "emoji" else SHAPES
    size = plan.vision.size if recipe.size is None else recipe.size
    source = EmojiSource(size, split="all", mix=MIX) if recipe.data == "emoji" else ShapesSource(size, split="all")
    loop: LoopConfig = plan.loop if recipe.steps is None else replace(plan.loop, steps=recipe.steps)
    vision = replace(plan.vision, size=size, patch=size * plan.vision.patch // plan.vision.size)
    remember(recipe.out, "JudgeRecipe", source.key, size=size, seed=recipe.seed)
    clip, tokenizer = train_clip(replace(plan, loop=loop, vision=vision), source, size, recipe.seed, recipe.out)
    if rank() == 0:
        save_clip(clip, tokenizer, recipe.out / "model")
    return recipe.out / "model"
