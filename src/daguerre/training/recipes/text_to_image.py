"""Fine-tune the UNet of a latent diffusion model on a directory of images; autoencoder and text encoder stay as they are."""

import shlex
import shutil
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.data import BatchLoader, FolderDataset
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.gradient_checkpointing import checkpointed
from daguerre.training.checkpoint import MAX_CHECKPOINTS
from daguerre.training.datasets.images import open_training_images
from daguerre.training.datasets.latents import CachedCaptions, CachedLatents, cache_latents
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.options.text_to_image import TextToImageRecipe
from daguerre.training.processes import rank
from daguerre.training.recipes.stages import resize_unet, trained_parts, with_epochs
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
    size = model.sample_size if recipe.resolution is None else recipe.resolution
    unet_config = resize_unet(model.unet.config, recipe.unet_channels, recipe.unet_blocks)
    if recipe.crops_per_image < 1:
        raise DaguerreError(f"crops_per_image is {recipe.crops_per_image}; it must be 1 or more.")
    require_multiple(size, autoencoder.downsample_factor, model.name)
    source = open_training_images(str(recipe.data), size, recipe.images, captioned=True, repeats=True).trained
    assert isinstance(source, FolderDataset)
    recipe = with_epochs(recipe, source)
    loop = recipe.loop
    record_run(recipe.out, "TextToImageRecipe", source.key, size=size, seed=loop.seed, base=recipe.model)
    torch.manual_seed(loop.seed)
    unet = UNet(unet_config) if recipe.from_scratch else model.unet.float()
    model = replace(model, unet=unet, name=recipe.out.name, sample_size=size)
    encoded = {"data": source.key, "size": size, "autoencoder": network_hash(autoencoder)}
    batches = BatchLoader(source, loop.batch_size, loop.seed, size)
    if rank() == 0:
        _print_plan(recipe, model, len(source), size // autoencoder.downsample_factor, autoencoder.config.latent_channels)
    if recipe.cache:
        latents, captions = cache_latents(
            batches, autoencoder, recipe.crops_per_image * len(source), recipe.out / "cache", fingerprint(encoded)
        )
        batches = CachedLatents(latents, captions, loop.batch_size, loop.seed)
    task = DiffusionTask(model, recipe.loss, CachedCaptions(conditioner.encode_captions), source.captions(8, seed=0))
    options = {name: getattr(recipe, name) for name in ("from_scratch", "cache", "crops_per_image")}
    identity = encoded | options | {"model": recipe.model, "text": network_hash(conditioner), "loss": asdict(recipe.loss)}
    if recipe.unet_channels or recipe.unet_blocks:
        identity["unet"] = asdict(unet_config)
    with checkpointed(unet) if recipe.gradient_checkpointing else nullcontext():
        train(task, batches, loop, recipe.out, recipe=identity)
    if rank() == 0:
        save(model, recipe.out / "model")
        captions = [item.caption for item in source.items if item.caption.isprintable() and not item.caption.startswith("-")]
        prompt, path = shlex.quote(min(captions, key=len, default="an image")), shlex.quote(str(recipe.out / "model"))
        print(f"Try it: daguerre txt2img {prompt} --model {path}", file=sys.stderr)
    return recipe.out / "model"


def _print_plan(recipe: TextToImageRecipe, model: LatentDiffusion, images: int, side: int, channels: int) -> None:
    """Print what will be trained, for how long, and the disk space that it needs, to stderr. `side`: of the latents."""
    loop, trained = recipe.loop, sum(parameter.numel() for parameter in model.unet.parameters())
    cached = recipe.crops_per_image * images if recipe.cache else 0
    crops = f"{cached}, cached" if recipe.cache else "new in every step"
    epochs = loop.max_train_steps * loop.batch_size / images
    checkpoint = trained * 4 * (4 if loop.ema_decay else 3)  # weights, AdamW's two moments, EMA
    weights = sum(tensor.nbytes for module in model.modules for tensor in module.state_dict().values())
    needed = checkpoint * (MAX_CHECKPOINTS + 1) + weights + cached * channels * side**2 * 2
    existing = next(path for path in (recipe.out.absolute(), *recipe.out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    print(
        f"crops: {crops}, {model.sample_size}×{model.sample_size} pixels\n"
        f"training: {trained / 1e6:.1f} million parameters of the UNet, steps: {loop.max_train_steps}, batch size: {loop.batch_size}, "
        f"epochs: {epochs:.3g}\n"
        f"disk: {_gigabytes(checkpoint)} per checkpoint, up to {_gigabytes(needed)} in all; {_gigabytes(free)} free"
        f"{' (a resumed run uses part of it already)' if (recipe.out / 'checkpoints').is_dir() else ''}"
        f"{': this may not suffice' if free < needed else ''}",
        file=sys.stderr,
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
