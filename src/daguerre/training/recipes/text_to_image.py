"""Fine-tune the UNet of a latent diffusion model on a directory of images; autoencoder and text encoder stay as they are."""

import shlex
from dataclasses import asdict, replace
from pathlib import Path

import torch

from daguerre.data import FolderDataset
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.training.datasets.fine_tuning import ClassPrior, example_captions, latent_batches, open_captioned_images, preview_captions
from daguerre.training.datasets.images import TrainingImages
from daguerre.training.datasets.latents import CachedCaptions
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.diffusion import DiffusionTask, with_prior
from daguerre.training.options.text_to_image import TextToImageRecipe
from daguerre.training.plan import announce, example_caption, network_bytes, print_plan
from daguerre.training.recipes.stages import resize_unet, trained_parts, with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_diffusion, save
from daguerre.weights.hashing import network_hash


def run(recipe: TextToImageRecipe) -> Path:
    """Train, and return the directory of the finished model.

    Raises:
        DaguerreError: there are no images, the model has no autoencoder or text encoder, or `out` belongs to another run.
    """
    model = load_diffusion(recipe.model)
    autoencoder, _ = trained_parts(model)
    size = model.sample_size if recipe.resolution is None else recipe.resolution
    unet_config = resize_unet(model.unet.config, recipe.unet_channels, recipe.unet_blocks)
    if recipe.crops_per_image < 1:
        raise DaguerreError(f"crops_per_image is {recipe.crops_per_image}; it must be 1 or more.")
    images = open_captioned_images(recipe.data, size, recipe.images, autoencoder, unet_config, model.name)
    key, seed = images.trained.key, recipe.loop.seed
    record_run(recipe.out, "TextToImageRecipe", key, size=size, seed=seed, base=recipe.model, threads=recipe.machine.threads)
    return fine_tune(recipe, replace(model, sample_size=size), images)


def fine_tune(recipe: TextToImageRecipe, model: LatentDiffusion, images: TrainingImages, prior: ClassPrior | None = None) -> Path:
    """Train the UNet of a model on opened images of its size, as `run` does; `prior`: preserved images of a class."""
    source, (autoencoder, conditioner), size = images.trained, trained_parts(model), model.sample_size
    assert isinstance(source, FolderDataset)
    recipe = with_epochs(recipe, source)
    loop = recipe.loop
    torch.manual_seed(loop.seed)
    unet_config = resize_unet(model.unet.config, recipe.unet_channels, recipe.unet_blocks)
    unet = UNet(unet_config) if recipe.from_scratch else model.unet.float()
    model = replace(model, unet=unet, name=recipe.out.name)
    encoded = {"data": source.key, "size": size, "autoencoder": network_hash(autoencoder)}
    _print_plan(recipe, model, len(source), size // autoencoder.downsample_factor, autoencoder.config.latent_channels)
    crops = recipe.crops_per_image if recipe.cache else None
    batches, validation = latent_batches(images, autoencoder, recipe.out, loop, crops, prior)
    task = DiffusionTask(model, recipe.loss, CachedCaptions(conditioner.encode_captions), preview_captions(source, prior))
    options = {name: getattr(recipe, name) for name in ("from_scratch", "cache", "crops_per_image")}
    identity = encoded | options | {"model": recipe.model, "text": network_hash(conditioner), "loss": asdict(recipe.loss)}
    if recipe.unet_channels or recipe.unet_blocks:
        identity["unet"] = asdict(unet_config)
    if prior is not None:
        identity["prior"] = prior.identity
    train(with_prior(task, prior), batches, loop, recipe.out, recipe=identity, validation=validation)
    if rank() == 0:
        save(model, recipe.out / "model")
    caption, path = example_caption(example_captions(source)), recipe.out / "model"
    announce(f"Try it: daguerre txt2img {shlex.quote(caption)} --model {shlex.quote(str(path))}")
    return recipe.out / "model"


def _print_plan(recipe: TextToImageRecipe, model: LatentDiffusion, images: int, side: int, channels: int) -> None:
    """Print the plan of the training. `side`: of the latents."""
    cached = recipe.crops_per_image * images if recipe.cache else 0
    announce(f"latents: {f'{cached}, {recipe.crops_per_image} of each image, cached' if recipe.cache else 'new in every step'}")
    networks = {"UNet": model.unet}
    cache_bytes = cached * channels * side**2 * 2  # float16
    print_plan(networks, recipe.loop, recipe.out, images=images, model_bytes=network_bytes(*model.modules), cache_bytes=cache_bytes)
