"""A whole recipe, from pictures to a model folder: what `daguerre train emoji` and `daguerre train shapes` have in common."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from daguerre.atomic_io import atomic_write
from daguerre.conditioning import TextConditioner
from daguerre.data import Dataset
from daguerre.errors import DaguerreError
from daguerre.training.config import LatentRecipe, LoopConfig
from daguerre.training.processes import rank
from daguerre.training.recipes.stages import DiffusionPlan, LatentDiffusionPlan, init_model, train_autoencoder, train_clip, train_diffusion
from daguerre.training.run_identity import require_same
from daguerre.weights import load_diffusion, save, save_clip
from daguerre.weights.tensors.safetensors import read_json


def run_latent_recipe(
    recipe: LatentRecipe, plan: LatentDiffusionPlan, source: Dataset, shown: Sequence[str], curriculum: Dataset | None = None
) -> Path:
    """Train the stages of `plan` on `source` under `recipe.out`; return `out/model`, the finished folder.

    A fresh UNet begins with `lesson`, for the share of its steps that the plan has for one.
    """
    plan = with_steps(plan, recipe)
    if recipe.model is not None and (recipe.autoencoder_steps, recipe.clip_steps) != (None, None):
        raise DaguerreError("With --from only the last stage is trained; leave out --autoencoder-steps and --clip-steps, or --from.")
    base = None if recipe.model is None else load_diffusion(recipe.model)
    record_run(recipe.out, type(recipe).__name__, source.key, size=plan.size, seed=recipe.seed, base=recipe.model, plan=asdict(plan))
    if base is None:
        autoencoder = train_autoencoder(plan.autoencoder, source, plan.size, recipe.seed, recipe.out / "autoencoder")
        clip, tokenizer = train_clip(plan.clip, source, plan.size, recipe.seed, recipe.out / "clip")
        if rank() == 0:
            save_clip(clip, tokenizer, recipe.out / "clip" / "model")  # whole, for who wants its eyes
        conditioner = TextConditioner(tokenizer, clip.text.eval())
        model = init_model(plan.diffusion, autoencoder, conditioner, plan.size, recipe.seed, recipe.out.name)
        if curriculum is not None and plan.diffusion.loop.max_train_steps > 1:
            first, plan = split_over_processes(plan)
            train_diffusion(first, model, curriculum, recipe.seed, recipe.out / "lesson", shown)
    else:
        model = replace(base, name=recipe.out.name)
    train_diffusion(plan.diffusion, model, source, recipe.seed, recipe.out / "diffusion", shown)
    if rank() == 0:
        save(model, recipe.out / "model")
    return recipe.out / "model"


def split_over_processes(plan: LatentDiffusionPlan) -> tuple[DiffusionPlan, LatentDiffusionPlan]:
    """The lesson of a plan, at least one step, and the plan without it."""
    whole, steps = plan.diffusion, math.ceil(plan.curriculum * plan.diffusion.loop.max_train_steps)
    first = replace(
        whole, cached_samples=math.ceil(plan.curriculum * whole.cached_samples), loop=replace(whole.loop, max_train_steps=steps)
    )
    return first, replace(plan, diffusion=replace(whole, loop=replace(whole.loop, max_train_steps=whole.loop.max_train_steps - steps)))


def with_steps(plan: LatentDiffusionPlan, recipe: LatentRecipe) -> LatentDiffusionPlan:
    """The plan with the numbers of steps that the recipe asks for."""

    def loop(config: LoopConfig, steps: int | None) -> LoopConfig:
        return config if steps is None else replace(config, max_train_steps=steps)

    return replace(
        plan,
        autoencoder=replace(plan.autoencoder, loop=loop(plan.autoencoder.loop, recipe.autoencoder_steps)),
        clip=replace(plan.clip, loop=loop(plan.clip.loop, recipe.clip_steps)),
        diffusion=replace(plan.diffusion, loop=loop(plan.diffusion.loop, recipe.diffusion_steps)),
    )


def record_run(out: Path, recipe: str, source: str, *, size: int, seed: int, base: str | None = None, **more: Any) -> None:
    """Write what is trained here to `out/recipe.json`; refuse a folder in which something else was trained."""
    path, identity = out / "recipe.json", {"recipe": recipe, "source": source, "size": size, "seed": seed, "base": base}
    if path.is_file():
        before = read_json(path)
        require_same({name: before.get(name) for name in identity}, identity, out)
    with atomic_write(path) as file:  # every process writes the same
        file.write(json.dumps(identity | more, indent=1, default=str).encode())
