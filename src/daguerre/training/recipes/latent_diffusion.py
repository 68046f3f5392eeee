"""Train a complete model, from a dataset to a saved directory: shared by `daguerre train emoji` and `daguerre train shapes`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from daguerre.conditioning import TextConditioner
from daguerre.data import Dataset
from daguerre.errors import DaguerreError
from daguerre.training.config import LoopConfig
from daguerre.training.distributed.processes import rank
from daguerre.training.options.latent_diffusion import LatentRecipe
from daguerre.training.plan import announce
from daguerre.training.recipes.stages import (
    DiffusionPlan,
    LatentDiffusionPlan,
    init_model,
    resize_unet,
    train_autoencoder,
    train_clip,
    train_diffusion,
)
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion, save, save_clip


def run_latent_recipe(
    recipe: LatentRecipe, plan: LatentDiffusionPlan, source: Dataset, preview_prompts: Sequence[str], curriculum: Dataset | None = None
) -> Path:
    """Train the stages of `plan` on `source` in `recipe.out`; return `out/model`, the finished directory.

    A new UNet first trains on the dataset `curriculum`, for the plan's share of its steps.
    """
    plan = with_options(plan, recipe)
    if recipe.model is not None and (recipe.autoencoder_steps, recipe.clip_steps) != (None, None):
        raise DaguerreError("With --model only the UNet is trained; remove --autoencoder-steps and --clip-steps, or --model.")
    if recipe.model is not None and (recipe.unet_channels or recipe.unet_blocks is not None):
        raise DaguerreError("With --model the UNet keeps its size; remove --unet-channels and --unet-blocks, or --model.")
    base = None if recipe.model is None else load_diffusion(recipe.model)
    record_run(
        recipe.out,
        type(recipe).__name__,
        source.key,
        size=plan.size,
        seed=recipe.seed,
        base=recipe.model,
        plan=asdict(plan),
        threads=recipe.machine.threads,
    )
    if base is None:
        announce("stage 1 of 3: the autoencoder")
        autoencoder = train_autoencoder(plan.autoencoder, source, plan.size, recipe.seed, recipe.out / "autoencoder")
        announce("stage 2 of 3: CLIP, whose text tower is the text encoder")
        clip, tokenizer = train_clip(plan.clip, source, plan.size, recipe.seed, recipe.out / "clip")
        if rank() == 0:
            save_clip(clip, tokenizer, recipe.out / "clip" / "model")  # both towers; the model keeps only the text encoder
        conditioner = TextConditioner(tokenizer, clip.text.eval())
        model = init_model(plan.diffusion, autoencoder, conditioner, plan.size, recipe.seed, recipe.out.name)
        if curriculum is not None and plan.diffusion.loop.max_train_steps > 1:
            first, plan = split_curriculum(plan)
            announce("stage 3 of 3: the UNet, first on captions that name things in reading order")
            train_diffusion(first, model, curriculum, recipe.seed, recipe.out / "curriculum", preview_prompts)
    else:
        model = replace(base, name=recipe.out.name)
    announce("stage 3 of 3: the UNet" if base is None else "the UNet")
    train_diffusion(plan.diffusion, model, source, recipe.seed, recipe.out / "diffusion", preview_prompts)
    if rank() == 0:
        save(model, recipe.out / "model")
    return recipe.out / "model"


def split_curriculum(plan: LatentDiffusionPlan) -> tuple[DiffusionPlan, LatentDiffusionPlan]:
    """The curriculum part of a plan, at least one step, and the rest of the plan."""
    whole, total = plan.diffusion, plan.diffusion.loop.max_train_steps
    steps = math.ceil(plan.curriculum * total)
    first = replace(
        whole, cached_samples=math.ceil(plan.curriculum * whole.cached_samples), loop=replace(whole.loop, max_train_steps=steps)
    )
    return first, replace(plan, diffusion=replace(whole, loop=replace(whole.loop, max_train_steps=total - steps)))


def with_options(plan: LatentDiffusionPlan, recipe: LatentRecipe) -> LatentDiffusionPlan:
    """The plan with the recipe's numbers of steps and size of the UNet. Raises DaguerreError if that size is impossible."""

    def loop(config: LoopConfig, steps: int | None) -> LoopConfig:
        return config if steps is None else replace(config, max_train_steps=steps)

    unet = resize_unet(plan.diffusion.unet, recipe.unet_channels, recipe.unet_blocks)
    return replace(
        plan,
        autoencoder=replace(plan.autoencoder, loop=loop(plan.autoencoder.loop, recipe.autoencoder_steps)),
        clip=replace(plan.clip, loop=loop(plan.clip.loop, recipe.clip_steps)),
        diffusion=replace(plan.diffusion, loop=loop(plan.diffusion.loop, recipe.diffusion_steps), unet=unet),
    )
