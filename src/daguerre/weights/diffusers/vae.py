"""First stages on disk: KL and VQ autoencoders, in a folder that diffusers' `AutoencoderKL` and `VQModel` can also open.

config.json  diffusion_pytorch_model.safetensors
"""

from pathlib import Path

import torch

from daguerre.atomic_io import atomic_path, check_overwrite, expand_user
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.vq_model import VQModel
from daguerre.weights.catalog import INDEX, SHARED_FIRST_STAGES
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.diffusers.load import build, load_autoencoder, read_autoencoder_tensors, write_part
from daguerre.weights.diffusers.vae_config import first_stage_json, vq_config
from daguerre.weights.original.load import load_first_stage_file
from daguerre.weights.tensors.safetensors import config_errors, read_json

FirstStage = AutoencoderKL | VQModel
FIRST_STAGE_FOLDERS = ("vae", "vqvae", "first_stage")  # folders of a first stage inside a complete model


def save_first_stage(network: FirstStage, folder: str | Path, sample_size: int = 256) -> Path:
    """Write a first stage atomically, replacing an older one. `sample_size` is the side of its training images in pixels.

    Raises:
        DaguerreError: the folder cannot be written or holds something else; its content is unchanged.
    """
    folder = Path(folder)
    check_overwrite(folder, CONFIG_FILE)
    with atomic_path(folder) as temporary:
        write_first_stage(network, temporary, sample_size)
    return folder


def write_first_stage(network: FirstStage, folder: Path, sample_size: int) -> None:
    """Write a first stage inside an `atomic_path`; raises OSError if the disk is full."""
    write_part(folder, first_stage_json(network.config, sample_size), network.state_dict())


def load_first_stage(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, scaling_factor: float | None = None
) -> FirstStage:
    """Load a first stage from its own folder, the folder of a complete model, or a single file of taming or latent diffusion.

    Args:
        scaling_factor: of the latents, for a file without one; None is 0.18215 for a KL autoencoder and 1 for a VQ model.

    Raises:
        DaguerreError: the first stage is missing or incomplete.
    """
    path = expand_user(source)
    if path.is_file():
        return load_first_stage_file(path, scaling_factor=scaling_factor, device=device, dtype=dtype)
    folder = first_stage_folder(path)
    given = read_json(folder / CONFIG_FILE)
    match kind := given.get("_class_name"):
        case "AutoencoderKL":
            return load_autoencoder(folder, device=device, dtype=dtype)
        case "VQModel":
            tensors = read_autoencoder_tensors(folder, device=device, dtype=dtype)
            with config_errors(folder):
                return build(VQModel, vq_config(given, folder / CONFIG_FILE), folder, tensors)
    raise DaguerreError(f"'{folder}' holds a {kind}; a first stage is an AutoencoderKL or a VQModel.")


def first_stage_folder(path: Path) -> Path:
    """The folder of the first stage: the path itself, or a subfolder of a complete model. Raises DaguerreError if there is none."""
    own = tuple(path / name for name in FIRST_STAGE_FOLDERS)
    subfolders = (*own, SHARED_FIRST_STAGES.get(path, path)) if (path / INDEX).is_file() else ()
    folder = next((subfolder for subfolder in subfolders if (subfolder / CONFIG_FILE).is_file()), path)
    if not (folder / CONFIG_FILE).is_file():
        raise DaguerreError(f"'{path}' is not a first stage: give a checkpoint file, or a folder with a {CONFIG_FILE} and weights.")
    return folder
