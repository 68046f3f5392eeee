"""What most people want: a latent diffusion model of their own pictures. Autoencoder and text encoder stay, the UNet learns."""

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.data import BatchLoader, FolderDataset
from daguerre.errors import DaguerreError
from daguerre.models.unet import UNet
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.config import TextToImageRecipe
from daguerre.training.datasets.latents import CachedCaptions, CachedLatents, cache_latents
from daguerre.training.loop import fingerprint, train, weights_key
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.processes import rank
from daguerre.training.recipes.latent_diffusion import record_run
from daguerre.training.recipes.stages import trained_parts
from daguerre.weights import load_diffusion, save


def run(recipe: TextToImageRecipe) -> Path:
    """Train, and return the folder of the finished model.

    Raises:
        DaguerreError: the folder has no pictures, the model has no parts to train with, or `out` holds another run.
    """
    model = load_diffusion(recipe.model)
    autoencoder, conditioner = trained_parts(model)
    size, loop = model.sample_size if recipe.resolution is None else recipe.resolution, recipe.loop
    if recipe.crops_per_image < 1:
        raise DaguerreError(f"views is {recipe.crops_per_image}; each picture is encoded at least once.")
    if size < 1 or size % autoencoder.downsample_factor:
        raise DaguerreError(f"size is {size}; for {model.name} it must be a multiple of {autoencoder.downsample_factor}.")
    source = FolderDataset(recipe.data, size, skip_bad=recipe.skip_bad)
    for _, why in source.skipped:
        print(f"skipped: {why}", file=sys.stderr)
    if source.skipped:
        print(f"{len(source.skipped)} skipped, {len(source)} pictures left", file=sys.stderr)
    record_run(recipe.out, "TextToImageRecipe", source.key, size=size, seed=loop.seed, base=recipe.model)
    torch.manual_seed(loop.seed)
    unet = UNet(model.unet.config) if recipe.from_scratch else model.unet.float()
    model = replace(model, unet=unet, name=recipe.out.name, sample_size=size)
    encoded = {"data": source.key, "size": size, "autoencoder": weights_key(autoencoder)}
    batches = BatchLoader(source, loop.batch_size, loop.seed, size)
    if recipe.cache:
        kept = cache_latents(batches, autoencoder, recipe.crops_per_image * len(source), recipe.out / "cache", fingerprint(encoded))
        batches = CachedLatents(*kept, loop.batch_size, loop.seed)
    stage = DiffusionTask(model, recipe.loss, CachedCaptions(conditioner.encode_captions), source.captions(8, seed=0))
    told = {name: getattr(recipe, name) for name in ("from_scratch", "cache", "crops_per_image")}
    identity = encoded | told | {"from": recipe.model, "text": weights_key(conditioner), "loss": asdict(recipe.loss)}
    with checkpointed(unet) if recipe.gradient_checkpointing else nullcontext():
        train(stage, batches, loop, recipe.out, recipe=identity)
    if rank() == 0:
        save(model, recipe.out / "model")
    return recipe.out / "model"
