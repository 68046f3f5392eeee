"""One door to every model: a name, a folder or a file in, a whole model out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from daguerre.diffusion.denoiser import Prediction
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.weights.catalog import INDEX, LATENT_PRIOR, find, may_be_on_the_hub
from daguerre.weights.diffusers.load import LOADABLE_PIPELINES, load_folder
from daguerre.weights.tensors.safetensors import read_json

if TYPE_CHECKING:
    from daguerre.runtime.offload import SequentialOffload
    from daguerre.weights.tensors.reader import TensorFile


def load(
    source: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offline: bool = False,
    **options: Any,
) -> LatentDiffusion | LatentPrior:
    """Open a model that makes pictures, by diffusion (see `load`, which takes the `options`) or code by code.

    Raises:
        DaguerreError: there is no such model, or its files are not whole; says what is missing.
    """
    path, place = resolve_path(source, offline, options.get("variant")), default_device(device)
    taming = _taming(path)
    if taming is None and not _is_latent_prior(path):
        return load_diffusion(source, device=place, dtype=dtype, offline=offline, **options)
    if given := [name for name, value in options.items() if value is not None]:
        raise DaguerreError(f"'{path}' is a prior over codes, which has no {' or '.join(given)}; leave that out.")
    if taming is not None:
        from daguerre.weights.original.taming import load_taming

        return load_taming(taming, device=place, dtype=dtype or torch.float32)
    from daguerre.weights.diffusers.prior import load_latent_prior

    return load_latent_prior(path, device=place, dtype=dtype or torch.float32)


def load_diffusion(
    source: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offline: bool = False,
    prediction: Prediction | None = None,
    heads: int | tuple[int, ...] | None = None,
    ema: bool | None = None,
    variant: str | None = None,
    offload: "bool | SequentialOffload" = False,
) -> LatentDiffusion:
    """Open a diffusion model.

    Args:
        source: None for the embedded model, the name of another one inside the package, a folder in the field's layout, one file, or an
            id of the hub (see `hub.resolve`).
        device: None is the first CUDA device where there is one, else the CPU.
        dtype: None is float32.
        offline: of the hub, look only at what was fetched before.
        prediction, heads: what the network predicts, and the UNet's heads (one number or one a level), where the files do not say.
        ema: of a file with both, read the running average of the weights in their place.
        variant: of a folder's files, such as "fp16".
        offload: keep one network in memory at a time, read from the files each time it runs (sequential offload). A SequentialOffload also
            states which ones stay loaded, and may be shared with another model.

    Raises:
        DaguerreError: there is no such model, or its files are not whole; says what is missing.
    """
    path, place, dtype = resolve_path(source, offline, variant), default_device(device), dtype or torch.float32
    if path.is_dir() and not (path / INDEX).is_file():
        raise DaguerreError(f"'{path}' is not a model: a model is a checkpoint file, or a folder with a {INDEX} in it.")
    if _is_latent_prior(path):
        raise DaguerreError(f"'{path}' is a prior over codes, where a diffusion model is needed; `daguerre sample {path}` draws from it.")
    kind = read_json(path / INDEX).get("_class_name") if path.is_dir() else None
    told = bool(offload) or any(option is not None for option in (prediction, heads, ema, variant))
    if not isinstance(kind, str) or told or (kind not in LOADABLE_PIPELINES and kind.startswith(("StableDiffusion", "LDM"))):
        from daguerre.weights.original.load import load_single_file  # a quick start needs none of it

        return load_single_file(
            path, device=place, dtype=dtype, prediction=prediction, heads=heads, ema=ema, variant=variant, offload=offload
        )
    return load_folder(path, device=place, dtype=dtype)


def load_vae(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offline: bool = False,
    scaling_factor: float = 0.18215,
) -> AutoencoderKL:
    """Open an autoencoder alone, from its own folder or file, from a whole model's, or from the hub; arguments as in `load`.

    Args:
        scaling_factor: of its latents, where it is a file and so does not say; that of the model which it is for.

    Raises:
        DaguerreError: there is none, or its files are not whole.
    """
    from daguerre.weights.diffusers.vae import load_first_stage  # a quick start needs none of it

    path, place = resolve_path(source, offline), default_device(device)
    found = load_first_stage(path, device=place, dtype=dtype or torch.float32, scaling_factor=scaling_factor)
    if not isinstance(found, AutoencoderKL):
        raise DaguerreError(f"'{path}' holds an autoencoder with a codebook; this model's must be a KL autoencoder.")
    return found


def vae_files(source: str | Path, *, offline: bool = False) -> tuple[Path, ...]:
    """The files with the weights that `load_vae` reads, which tell what autoencoder it is. Raises DaguerreError where there is none."""
    from daguerre.weights.diffusers.vae import first_stage_folder
    from daguerre.weights.tensors.reader import weight_files

    path = resolve_path(source, offline)
    return weight_files(path if path.is_file() else first_stage_folder(path))


def save(model: LatentDiffusion | LatentPrior, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a model as a folder: a diffusion model as other programs of the field open it too (see `saving.save_folder`), with the tensors
    in `dtype`, or a prior over codes with its first stage, as they are (see `latent_priors`)."""
    if isinstance(model, LatentDiffusion):
        from daguerre.weights.diffusers.save import save_folder

        return save_folder(model, folder, dtype=dtype)
    from daguerre.weights.diffusers.prior import save_latent_prior

    return save_latent_prior(model, folder)


def default_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for, else the first CUDA device, else the CPU.

    Raises:
        DaguerreError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without a device
        raise DaguerreError(f"The device {str(device)!r} cannot be used here; 'cpu' always can, 'cuda' where there is a GPU.") from error
    return chosen


def is_diffusion_model(path: Path) -> bool:
    """Whether a place holds a diffusion model, as far as its index or its names tell."""
    if path.is_dir():
        return (path / INDEX).is_file() and str(read_json(path / INDEX).get("_class_name")).startswith(("StableDiffusion", "LDM"))
    return _taming(path) is None


def _is_latent_prior(path: Path) -> bool:
    return (path / INDEX).is_file() and read_json(path / INDEX).get("_class_name") == LATENT_PRIOR


def _taming(path: Path) -> "TensorFile | None":
    """The file of a first stage with its transformer, opened; None where it is anything else."""
    if not path.is_file():
        return None
    from daguerre.weights.tensors.reader import open_tensors

    file = open_tensors(path)
    return file if "transformer.tok_emb.weight" in file.shapes else None


def resolve_path(source: str | Path | None, offline: bool, variant: str | None = None) -> Path:
    if isinstance(source, str) and may_be_on_the_hub(source):
        from daguerre.weights.hub import resolve_hub_id

        return resolve_hub_id(source, offline=offline, variant=variant)
    return find(source)
