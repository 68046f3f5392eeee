"""A CLIP of images with captions. By default the one of `daguerre evaluate`: another size and seed than the model's own, trained on all
pairs of emoji, including the held-out ones."""

import shlex
from pathlib import Path

from daguerre.data import Dataset, EmojiDataset, EmojiMix
from daguerre.training.datasets.images import TrainingImages, open_training_images, validation_batches
from daguerre.training.distributed.processes import rank
from daguerre.training.options.latent_diffusion import ClipScorerRecipe
from daguerre.training.plan import announce
from daguerre.training.recipes.stages import ClipPlan, tiny_text, tiny_vision, train_clip, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import save_clip

SCORER_MIX = EmojiMix(recoloured=0.4, background=0.33, pair=0.25)  # colours and relations as often as names


def run(recipe: ClipScorerRecipe) -> Path:
    """Train, and return the directory of the finished CLIP.

    Raises:
        DaguerreError: there are no images, an image has no caption, or `out` belongs to another run.
    """
    images = open_training_images(recipe.data, recipe.resolution, recipe.images, captioned=True)
    recipe = with_epochs(recipe, images.trained)
    source, loop = _with_all_pairs(recipe, images), recipe.loop
    plan = ClipPlan(
        tiny_text(recipe.vocab_size, width=192, layers=3),
        tiny_vision(
            recipe.resolution, patch=recipe.resolution // 8, width=192, layers=4, projection=192
        ),  # each half of a pair has patches
        loop,
        repeats=4 if source.rendered else 1,  # files have one caption each
    )
    record_run(recipe.out, "ClipScorerRecipe", source.key, size=recipe.resolution, seed=loop.seed, threads=recipe.machine.threads)
    validation = validation_batches(images, loop.batch_size, loop.seed)
    clip, tokenizer = train_clip(plan, source, recipe.resolution, loop.seed, recipe.out, validation)
    if rank() == 0:
        save_clip(clip, tokenizer, recipe.out / "model")
    path = shlex.quote(str(recipe.out / "model"))
    announce(f"Try it: daguerre evaluate {'' if source.rendered else f'--images {shlex.quote(recipe.data)} '}--clip {path}")
    return recipe.out / "model"


def _with_all_pairs(recipe: ClipScorerRecipe, images: TrainingImages) -> Dataset:
    """The images; of emoji also the combinations that models are not trained on, because a scorer must know them."""
    return EmojiDataset(recipe.resolution, split="all", mix=SCORER_MIX) if recipe.data == "emoji" else images.trained
