"""Train a diffusion model of pixels, unconditional or with classes, for `daguerre sample`.

Ho et al. 2020, arXiv:2006.11239; learned variance and cosine schedule: Nichol & Dhariwal 2021, arXiv:2102.09672; classes that are dropped
for guidance: Ho & Salimans 2022, arXiv:2207.12598.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from daguerre.conditioning.class_map_image import LabelConditioner, UnconditionalConditioner
from daguerre.data import BatchLoader, Dataset
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import DDPM_CIFAR10, UNet, UNetConfig
from daguerre.training.datasets.classes import open_labelled
from daguerre.training.datasets.images import ValidationBatches, open_training_images
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import PREVIEW_SEEDS, DiffusionTask
from daguerre.training.options.ddpm import DDPMRecipe, UNetShape
from daguerre.training.options.ldm import LDMRecipe
from daguerre.training.plan import epoch_images, print_plan
from daguerre.training.recipes.stages import with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import save
from daguerre.weights.diffusers.pixel import DDIM

SCHEDULES = {"linear": ScheduleConfig("linear", 0.0001, 0.02), "cosine": ScheduleConfig("cosine")}
CLASS_GUIDANCE = 2.0  # default guidance scale of models with classes


def run(recipe: DDPMRecipe) -> Path:
    """Train, and return the directory of the finished model.

    Raises:
        DaguerreError: there are too few images, an image has no class, or `out` belongs to another run.
    """
    source, names, held_out = open_images(recipe)
    recipe = with_epochs(recipe, source)
    loop = recipe.loop
    identity = run_identity(recipe, source, names)
    record_run(recipe.out, "DDPMRecipe", source.key, size=recipe.resolution, seed=loop.seed, plan=identity, threads=recipe.machine.threads)
    torch.manual_seed(loop.seed)
    model = build_model(recipe, names)
    task = DiffusionTask(model, recipe.loss, encoder_of(model), preview_classes(names))
    print_plan({"UNet": model.unet}, loop, recipe.out, images=epoch_images(source))
    validation = () if held_out is None else ValidationBatches(held_out, loop.batch_size, loop.seed)
    train(task, BatchLoader(source, loop.batch_size, loop.seed), loop, recipe.out, recipe=identity, validation=validation)
    if rank() == 0:
        save(model, recipe.out / "model")
    return recipe.out / "model"


def open_images(recipe: DDPMRecipe | LDMRecipe) -> tuple[Dataset, tuple[str, ...] | None, Dataset | None]:
    """The images to train on, the names of their classes if the model has any, and the images kept out, if any.

    Raises:
        DaguerreError: there are no images, or fewer than a batch has; or an image has no class.
    """
    if recipe.condition == "class":
        opened = open_labelled(recipe.data, recipe.resolution, recipe.images)
    else:
        trained, held_out = open_training_images(recipe.data, recipe.resolution, recipe.images, captioned=recipe.condition == "text")
        opened = trained, None, held_out
    count, batch_size = len(opened[0]), recipe.loop.batch_size
    if not opened[0].rendered and count < batch_size:
        raise DaguerreError(f"There are {count} images, fewer than --batch-size {batch_size}; add images or use a smaller batch.")
    return opened


def run_identity(recipe: Any, source: Dataset, names: Sequence[str] | None) -> dict[str, Any]:
    """The values that determine the trained weights, apart from those of the loop."""
    options = {name: getattr(recipe, name) for name in ("prediction", "schedule", "variance", "condition")}
    return {**options, "shape": asdict(recipe.shape), "loss": asdict(recipe.loss), "classes": names, "source": source.key}


def build_model(recipe: DDPMRecipe, names: Sequence[str] | None) -> LatentDiffusion:
    """The model of a recipe with random weights."""
    channels = 6 if recipe.variance == "learned" else 3
    config = plain_unet(recipe.shape, in_channels=3, out_channels=channels, classes=None if names is None else len(names) + 1)
    return LatentDiffusion(
        UNet(config),
        IdentityAutoencoder(),
        UnconditionalConditioner() if names is None else LabelConditioner(names),
        Schedule(SCHEDULES[recipe.schedule]),
        recipe.prediction,
        recipe.out.name,
        recipe.resolution,
        default_guidance=1.0 if names is None else CLASS_GUIDANCE,
        sampler_config=DDIM,
        variance=recipe.variance,
    )


def plain_unet(shape: UNetShape, *, in_channels: int, out_channels: int, classes: int | None) -> UNetConfig:
    """A UNet without cross-attention, with the details of the published DDPM. classes: labels, with the one for no class."""
    multiples = all(width % shape.head_width == 0 for width in shape.channels)
    return replace(
        DDPM_CIFAR10,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=shape.channels,
        blocks=shape.blocks,
        depth=tuple(int(level in shape.attention_levels) for level in range(len(shape.channels))),
        heads=tuple(width // shape.head_width if multiples else 1 for width in shape.channels),
        classes=classes,
        dropout=shape.dropout,
        norm_groups=math.gcd(32, *shape.channels),
    )


def encoder_of(model: LatentDiffusion) -> Any:
    """What encodes captions for training: literal class names, or nothing."""
    conditioner = model.conditioner
    return conditioner.encode_captions if isinstance(conditioner, LabelConditioner) else conditioner


def preview_classes(names: Sequence[str] | None) -> Sequence[str]:
    """Up to 16 classes, spread evenly over all."""
    if names is None:
        return ()
    count = min(PREVIEW_SEEDS, len(names))
    return [names[i * len(names) // count] for i in range(count)]
