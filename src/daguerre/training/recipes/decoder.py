"""Train decoders: fine-tune a model's own, or distil a tiny one from it.

Of a fine-tuned model all other tensors stay the same, byte for byte.
"""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import BatchLoader
from daguerre.metrics import psnr
from daguerre.models.tiny_autoencoder import TinyAutoencoderConfig, TinyDecoder
from daguerre.training.datasets.codes import PriorDataset, split_held_out
from daguerre.training.datasets.images import open_training_images, validation_batches
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import train
from daguerre.training.objectives.decoder import DecoderTask, TinyDecoderTask
from daguerre.training.objectives.perceptual import load_perceptual
from daguerre.training.options.decoder import DecoderRecipe, TinyDecoderRecipe
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.plan import epoch_images, network_bytes, print_plan
from daguerre.training.recipes.stages import with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_first_stage, save_first_stage
from daguerre.weights.catalog import find
from daguerre.weights.diffusers.load import modernize_key
from daguerre.weights.diffusers.vae import FirstStage, first_stage_folder
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_metadata, read_safetensors, write_safetensors
from daguerre.weights.tiny_autoencoder import PREVIEW_FILE, load_tiny_autoencoder, save_tiny_decoder

DECODER_PREFIX = "decoder."
EVAL_IMAGES = 64  # or as many as a folder has held out


def run(recipe: DecoderRecipe) -> Path:
    """Train, print the PSNR before and after, and return the directory of the finished model.

    Raises:
        DaguerreError: there are no images or no such model, the resolution does not fit, or `out` belongs to another run.
    """
    path = find(recipe.model)
    first_stage = load_first_stage(path)
    require_multiple(recipe.resolution, first_stage.downsample_factor, f"'{path}'")
    images = open_training_images(recipe.data, recipe.resolution, recipe.images)
    validation = None if images.held_out is None else PriorDataset(images.held_out)
    trained, held_out, disjoint = split_held_out(PriorDataset(images.trained), validation)
    source = trained.images
    loop = with_epochs(recipe, images.trained).loop
    perceptual = load_perceptual(recipe.perceptual) if recipe.perceptual else None
    parts = {"model": network_hash(first_stage), "perceptual": perceptual and perceptual.key, "weight": recipe.perceptual_weight}
    record_run(recipe.out, "DecoderRecipe", source.key, size=recipe.resolution, seed=loop.seed, plan=parts, threads=recipe.machine.threads)
    measured = BatchLoader(held_out.images, held_out.limit(EVAL_IMAGES, 1), loop.seed + 1).batch(0).x
    before = _psnr(first_stage, measured)
    task = DecoderTask(first_stage, measured[:8], perceptual and perceptual.distance, recipe.perceptual_weight)
    torch.manual_seed(loop.seed)
    print_plan(task.networks, loop, recipe.out, images=epoch_images(source), model_bytes=network_bytes(first_stage))
    validation_part = validation_batches(images, loop.batch_size, loop.seed)
    batches = BatchLoader(source, loop.batch_size, loop.seed)
    train(task, batches, loop, recipe.out, recipe=parts | {"source": source.key}, validation=validation_part)
    folder = recipe.out / "model"
    if rank() == 0:
        _write(first_stage.cpu(), path, folder, recipe.resolution)
        after = _psnr(load_first_stage(folder), measured)
        kind = "new rendered images" if source.rendered else "held-out images" if disjoint else "training images"
        print(f"PSNR of {len(measured)} {kind}: {before:.2f} dB before, {after:.2f} dB after")
    return folder


def run_tiny(recipe: TinyDecoderRecipe) -> Path:
    """Distil a tiny decoder, print its PSNR against the model's own, and return its file, for `--vae` or the folder of the model.

    Raises:
        DaguerreError: there are no images or no such model, the resolution does not fit, or `out` belongs to another run.
    """
    path = find(recipe.model)
    first_stage = load_first_stage(path).requires_grad_(False)
    f = first_stage.downsample_factor
    require_multiple(recipe.resolution, f, f"'{path}'")
    images = open_training_images(recipe.data, recipe.resolution, recipe.images)
    loop = with_epochs(recipe, images.trained).loop
    perceptual = load_perceptual(recipe.perceptual) if recipe.perceptual else None
    config = TinyAutoencoderConfig(first_stage.config.latent_channels, recipe.width, recipe.blocks, f.bit_length() - 1)
    parts = {"teacher": network_hash(first_stage), "perceptual": perceptual and perceptual.key, "weight": recipe.perceptual_weight}
    plan = {**parts, "decoder": asdict(config)}
    source = images.trained
    record_run(
        recipe.out, "TinyDecoderRecipe", source.key, size=recipe.resolution, seed=loop.seed, plan=plan, threads=recipe.machine.threads
    )
    torch.manual_seed(loop.seed)
    decoder = TinyDecoder(config)
    measured = BatchLoader(images.held_out or source, EVAL_IMAGES if source.rendered else 8, loop.seed + 1).batch(0).x
    task = TinyDecoderTask(first_stage, decoder, measured[:8], perceptual and perceptual.distance, recipe.perceptual_weight)
    print_plan(task.networks, loop, recipe.out, images=epoch_images(source))
    batches = BatchLoader(source, loop.batch_size, loop.seed)
    train(task, batches, loop, recipe.out, recipe=plan, validation=validation_batches(images, loop.batch_size, loop.seed))
    file = recipe.out / PREVIEW_FILE
    if rank() == 0:
        save_tiny_decoder(file, decoder, {"teacher": parts["teacher"]}, dtype=torch.float16)
        trained, first_stage = load_tiny_autoencoder(file).decoder, first_stage.cpu()
        task = TinyDecoderTask(first_stage, trained, measured.cpu())
        z, target = task.teach(measured.cpu())
        with torch.no_grad():
            value = psnr(target, trained(z).clamp(-1, 1)).mean()
        task.sample().save(recipe.out / "comparison.png")
        print(f"PSNR against the model's own decoder, {len(measured)} images: {value:.2f} dB; {file.stat().st_size / 1e6:.2f} MB")
    return file


@torch.no_grad()
def _psnr(first_stage: FirstStage, x: Tensor) -> float:
    first_stage = first_stage.to(x.device).eval()
    reconstruction = torch.cat([first_stage.decode(first_stage.encode(part)) for part in x.split(1)])  # one by one, to save memory
    return psnr(x, reconstruction.clamp(-1, 1)).mean().item()


def _write(first_stage: FirstStage, source: Path, folder: Path, size: int) -> None:
    """Save the model at `source` with the decoder of `first_stage`, in the stored precision; of a file, only the first stage."""
    if source.is_file():
        save_first_stage(first_stage, folder, size)
        return
    part, trained = first_stage_folder(source), first_stage.state_dict()
    with atomic_path(folder) as temporary:
        shutil.copytree(source, temporary)
        for file in part.glob("*.safetensors"):
            tensors = read_safetensors(file)
            for name, tensor in tensors.items():
                if modernize_key(name).startswith(DECODER_PREFIX):
                    tensors[name] = trained[modernize_key(name)].to(tensor.dtype).view_as(tensor)
            write_safetensors(temporary / file.relative_to(source), tensors, read_metadata(file))
