"""A model's decoder tuned on someone's pictures: the result is the same model, byte for byte, but for the decoder's tensors."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import BatchLoader, FolderDataset
from daguerre.metrics import psnr
from daguerre.training.datasets.codes import PriorDataset, split_held_out
from daguerre.training.lineage_options import DecoderRecipe, require_multiple
from daguerre.training.loop import train
from daguerre.training.objectives.decoder import DecoderTask
from daguerre.training.objectives.perceptual import load_perceptual
from daguerre.training.processes import rank
from daguerre.training.recipes.first_stage import open_dataset
from daguerre.training.recipes.latent_diffusion import record_run
from daguerre.weights import load_first_stage, save_first_stage
from daguerre.weights.catalog import find
from daguerre.weights.diffusers.load import modernize_key
from daguerre.weights.diffusers.vae import FirstStage, first_stage_folder
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_metadata, read_safetensors, write_safetensors

DECODER = "decoder."
EVAL_IMAGES = 64  # pictures, or as many as are kept of a folder's


def run(recipe: DecoderRecipe) -> Path:
    """Train, print the PSNR before and after, and return the folder of the finished model.

    Raises:
        DaguerreError: there are no pictures or no such model, the size does not divide, or `out` holds another run.
    """
    path, loop = find(recipe.model), recipe.loop
    first_stage = load_first_stage(path)
    require_multiple(recipe.resolution, first_stage.downsample_factor, f"'{path}'")
    pictures = open_dataset(recipe.data, recipe.resolution, skip_bad=recipe.skip_bad)
    drawn = not isinstance(pictures, FolderDataset)
    trained, kept, unseen = split_held_out(PriorDataset(pictures, drawn=drawn))
    source = trained.images
    perceptual = load_perceptual(recipe.perceptual) if recipe.perceptual else None
    parts = {"model": network_hash(first_stage), "perceptual": perceptual and perceptual.key, "weight": recipe.weight}
    record_run(recipe.out, "DecoderRecipe", source.key, size=recipe.resolution, seed=loop.seed, plan=parts)
    measured = BatchLoader(kept.images, kept.enough(EVAL_IMAGES, 1), loop.seed + 1).batch(0).x
    before = _psnr(first_stage, measured)
    stage = DecoderTask(first_stage, measured[:8], perceptual and perceptual.distance, recipe.weight)
    torch.manual_seed(loop.seed)
    train(stage, BatchLoader(source, loop.batch_size, loop.seed), loop, recipe.out, recipe=parts | {"source": source.key})
    folder = recipe.out / "model"
    if rank() == 0:
        _write(first_stage.cpu(), path, folder, recipe.resolution)
        after = _psnr(load_first_stage(folder), measured)
        which = "drawn anew" if drawn else "not trained on" if unseen else "trained on"
        print(f"PSNR of {len(measured)} pictures {which}: {before:.2f} dB before, {after:.2f} dB after")
    return folder


@torch.no_grad()
def _psnr(first_stage: FirstStage, x: Tensor) -> float:
    first_stage = first_stage.to(x.device).eval()
    rebuilt = torch.cat([first_stage.decode(first_stage.encode(part)) for part in x.split(1)])  # one, for it may be large
    return psnr(x, rebuilt.clamp(-1, 1)).mean().item()


def _write(first_stage: FirstStage, source: Path, folder: Path, size: int) -> None:
    """The model at `source` with the decoder of `first_stage`, in the precision it had; of a file, only the first stage."""
    if source.is_file():
        save_first_stage(first_stage, folder, size)
        return
    part, trained = first_stage_folder(source), first_stage.state_dict()
    with atomic_path(folder) as beside:
        shutil.copytree(source, beside)
        for file in part.glob("*.safetensors"):
            tensors = read_safetensors(file)
            for name, tensor in tensors.items():
                if modernize_key(name).startswith(DECODER):
                    tensors[name] = trained[modernize_key(name)].to(tensor.dtype).view_as(tensor)
            write_safetensors(beside / file.relative_to(source), tensors, read_metadata(file))
