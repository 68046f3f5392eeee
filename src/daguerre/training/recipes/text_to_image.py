"""Fine-tune the UNet of a latent diffusion model on a directory of images; autoencoder and text encoder stay as they are."""

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.data import BatchLoader, FolderDataset
from daguerre.errors import DaguerreError
from daguerre.models.unet import UNet
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.datasets.latents import CachedCaptions, CachedLatents, cache_latents
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.options.text_to_image import TextToImageRecipe
from daguerre.training.processes import rank
from daguerre.training.recipes.stages import trained_parts
from daguerre.training.run_identity import fingerprint, record_run
from daguerre.weights import load_diffusion, save
from daguerre.weights.hashing import network_hash


def run(recipe: TextToImageRecipe) -> Path:
    """Train, and return the directory of the finished model.

    Raises:
        DaguerreError: there are no images, the model has no autoencoder or text encoder, or `out` belongs to another run.
    """
    model = load_diffusion(recipe.model)
    autoencoder, conditioner = trained_parts(model)
    size, loop = model.sample_size if recipe.resolution is None else recipe.resolution, recipe.loop
    if recipe.crops_per_image < 1:
        raise DaguerreError(f"crops_per_image is {recipe.crops_per_image}; it must be 1 or more.")
    require_multiple(size, autoencoder.downsample_factor, model.name)
    source = FolderDataset(recipe.data, size, skip_bad=recipe.skip_bad)
    for _, why in source.skipped:
        print(f"skipped: {why}", file=sys.stderr)
    if source.skipped:
        print(f"{len(source.skipped)} skipped, {len(source)} images left", file=sys.stderr)
    record_run(recipe.out, "TextToImageRecipe", source.key, size=size, seed=loop.seed, base=recipe.model)
    torch.manual_seed(loop.seed)
    unet = UNet(model.unet.config) if recipe.from_scratch else model.unet.float()
    model = replace(model, unet=unet, name=recipe.out.name, sample_size=size)
    encoded = {"data": source.key, "size": size, "autoencoder": network_hash(autoencoder)}
    batches = BatchLoader(source, loop.batch_size, loop.seed, size)
    if recipe.cache:
        latents, captions = cache_latents(
            batches, autoencoder, recipe.crops_per_image * len(source), recipe.out / "cache", fingerprint(encoded)
        )
        batches = CachedLatents(latents, captions, loop.batch_size, loop.seed)
    task = DiffusionTask(model, recipe.loss, CachedCaptions(conditioner.encode_captions), source.captions(8, seed=0))
    options = {name: getattr(recipe, name) for name in ("from_scratch", "cache", "crops_per_image")}
    identity = encoded | options | {"model": recipe.model, "text": network_hash(conditioner), "loss": asdict(recipe.loss)}
    with checkpointed(unet) if recipe.gradient_checkpointing else nullcontext():
        train(task, batches, loop, recipe.out, recipe=identity)
    if rank() == 0:
        save(model, recipe.out / "model")
    return recipe.out / "model"
