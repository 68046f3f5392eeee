"""Fine-tune a model's decoder on a dataset. All other tensors of the saved model stay the same, byte for byte."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import BatchLoader
from daguerre.metrics import psnr
from daguerre.training.datasets.codes import PriorDataset, split_held_out
from daguerre.training.datasets.images import open_training_images, validation_batches
from daguerre.training.loop import train
from daguerre.training.objectives.decoder import DecoderTask
from daguerre.training.objectives.perceptual import load_perceptual
from daguerre.training.options.decoder import DecoderRecipe
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.plan import epoch_images, network_bytes, print_plan
from daguerre.training.processes import rank
from daguerre.training.recipes.stages import with_epochs
from daguerre.training.run_identity import record_run
from daguerre.weights import load_first_stage, save_first_stage
from daguerre.weights.catalog import find
from daguerre.weights.diffusers.load import modernize_key
from daguerre.weights.diffusers.vae import FirstStage, first_stage_folder
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_metadata, read_safetensors, write_safetensors

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
