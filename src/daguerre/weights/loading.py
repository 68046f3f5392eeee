"""Load any model by a name, a folder, a file or a Hub id, and save models."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, overload

import torch

from daguerre.atomic_io import expand_user
from daguerre.diffusion.denoiser import Prediction
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.tiny_autoencoder import TinyAutoencoder, TinyDecoder
from daguerre.weights.catalog import INDEX, LATENT_PRIOR, find, may_be_on_the_hub
from daguerre.weights.diffusers.folder_names import PIXEL_PIPELINES
from daguerre.weights.diffusers.load import LOADABLE_PIPELINES, load_folder
from daguerre.weights.diffusers.pixel import load_pixel_folder, save_pixel_folder
from daguerre.weights.tensors.safetensors import read_json

if TYPE_CHECKING:
    from daguerre.runtime.offload import SequentialOffload
    from daguerre.weights.tensors.reader import TensorFile
    from daguerre.weights.tiny_autoencoder import TinyNetworks


class DiffusionOptions(TypedDict, total=False):
    """The options of `load` that only a diffusion model has; see `load_diffusion`."""

    prediction: Prediction
    heads: int | tuple[int, ...]
    ema: bool
    variant: str
    offload: "bool | SequentialOffload"
    vae: str | Path


@overload
def load(
    source: None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offline: bool = False,
    **options: Unpack[DiffusionOptions],
) -> LatentDiffusion: ...
@overload
def load(  # pyright: ignore[reportOverlappingOverload]  # without options a path may be a prior; with one it is a diffusion model
    source: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, offline: bool = False
) -> LatentDiffusion | LatentPrior: ...
@overload
def load(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offline: bool = False,
    **options: Unpack[DiffusionOptions],
) -> LatentDiffusion: ...
def load(
    source: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offline: bool = False,
    **options: Unpack[DiffusionOptions],
) -> LatentDiffusion | LatentPrior:
    """Load a generative model: latent diffusion (see `load_diffusion` for the `options`), or a prior over codes.

    The embedded model, and any model loaded with an option, is a `LatentDiffusion`.

    Raises:
        DaguerreError: there is no such model, or its files are incomplete; states what is missing.
    """
    path, chosen_device = resolve_path(source, offline, options.get("variant")), default_device(device)
    taming = _taming(path)
    if taming is None and not _is_latent_prior(path):
        return load_diffusion(source, device=chosen_device, dtype=dtype, offline=offline, **options)
    if given := [name for name, value in options.items() if value is not None]:
        raise DaguerreError(f"'{path}' is a prior over codes, which has no {' or '.join(given)}; omit it.")
    if taming is not None:
        from daguerre.weights.original.taming import load_taming

        return load_taming(taming, device=chosen_device, dtype=dtype or torch.float32)
    from daguerre.weights.diffusers.prior import load_latent_prior

    return load_latent_prior(path, device=chosen_device, dtype=dtype or torch.float32)


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
    vae: str | Path | None = None,
) -> LatentDiffusion:
    """Load a diffusion model.

    Args:
        source: None for the default embedded model, the name of another one, a folder in the diffusers layout, a file, or a Hub id (see
            `hub.resolve_hub_id`).
        device: default: the first CUDA device if there is one, else the CPU.
        dtype: default: float32.
        offline: only search the Hub's local cache.
        prediction, heads: what the network predicts, and the UNet's heads (one number, or one per level), if the files do not specify it.
        ema: load the EMA weights of a file that has both.
        variant: of a folder's files, such as "fp16".
        offload: keep one network in memory at a time, read from the files each time it runs (sequential offload). A SequentialOffload also
            states which ones stay loaded, and may be shared with another model.
        vae: a KL autoencoder to use instead of the model's own, or if it has none; a source as in `load_vae`. Also a tiny autoencoder
            (see `models.tiny_autoencoder`); one without an encoder keeps the model's own for that.

    Raises:
        DaguerreError: there is no such model, or its files are incomplete; states what is missing.
    """
    path, chosen_device, dtype = resolve_path(source, offline, variant), default_device(device), dtype or torch.float32
    if path.is_dir() and not (path / INDEX).is_file():
        raise DaguerreError(f"'{path}' is not a model: a model is a checkpoint file, or a folder with a {INDEX}.")
    if _is_latent_prior(path):
        raise DaguerreError(f"'{path}' is a prior over codes, and a diffusion model is needed; use `daguerre sample --model {path}`.")

    tiny = None if vae is None else _tiny_networks(vae, chosen_device, dtype, offline)
    replaces_own = vae is not None and (tiny is None or tiny.encoder is not None)

    def load_other_vae(scaling_factor: float) -> AutoencoderKL | TinyAutoencoder:
        assert vae is not None
        if tiny is not None and tiny.encoder is not None:
            return TinyAutoencoder(tiny.decoder, tiny.encoder)
        return load_vae(vae, device=chosen_device, dtype=dtype, offline=offline, scaling_factor=scaling_factor)

    kind = read_json(path / INDEX).get("_class_name") if path.is_dir() else None
    if kind in PIXEL_PIPELINES:
        given = {"heads": heads, "ema": ema, "offload": offload or None, "vae": vae}
        if unused := [name for name, value in given.items() if value is not None]:
            raise DaguerreError(f"'{path}' is a diffusion model of pixels, which has no {' or '.join(unused)}; omit it.")
        return load_pixel_folder(path, device=chosen_device, dtype=dtype, prediction=prediction, variant=variant)
    customised = bool(offload) or any(option is not None for option in (prediction, heads, ema, variant))
    if not isinstance(kind, str) or customised or (kind not in LOADABLE_PIPELINES and kind.startswith(("StableDiffusion", "LDM"))):
        from daguerre.weights.original.load import load_single_file  # imported here, because the embedded model does not need it

        model = load_single_file(
            path,
            device=chosen_device,
            dtype=dtype,
            prediction=prediction,
            heads=heads,
            ema=ema,
            variant=variant,
            offload=offload,
            load_other_vae=load_other_vae if replaces_own else None,
        )
    else:
        model = load_folder(path, device=chosen_device, dtype=dtype)
        if replaces_own:
            own = model.autoencoder
            model = replace(model, autoencoder=load_other_vae(own.config.scaling_factor if isinstance(own, AutoencoderKL) else 1.0))
    if vae is None:
        return model
    if tiny is not None and tiny.encoder is None:
        model = replace(model, autoencoder=TinyAutoencoder(tiny.decoder, model.autoencoder))
    decoder = model.autoencoder.decoder if isinstance(model.autoencoder, TinyAutoencoder) else model.autoencoder
    assert isinstance(decoder, AutoencoderKL | TinyDecoder)
    channels, wanted = decoder.config.latent_channels, model.unet.config.out_channels
    if channels != wanted:
        raise DaguerreError(f"The autoencoder '{vae}' has {channels} latent channels; the model {model.name!r} needs {wanted}.")
    name = f"{model.name} + {Path(vae).stem}"  # a name of its own, so that the two are not confused
    return replace(model, name=name, files=(*model.files, *vae_files(vae, offline=offline)))


def _tiny_networks(source: str | Path, device: torch.device, dtype: torch.dtype, offline: bool) -> "TinyNetworks | None":
    """The networks of a tiny autoencoder; None if the source is another autoencoder."""
    from daguerre.weights.tiny_autoencoder import is_tiny_autoencoder, load_tiny_autoencoder

    path = resolve_path(source, offline)
    return load_tiny_autoencoder(path, device=device, dtype=dtype) if is_tiny_autoencoder(path) else None


def load_vae(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offline: bool = False,
    scaling_factor: float = 0.18215,
) -> AutoencoderKL:
    """Load a single autoencoder from its own folder or file, from a complete model, or from the Hub; arguments as in `load_diffusion`.

    Args:
        scaling_factor: of its latents, for a file, which does not specify it; use that of the model it is for.

    Raises:
        DaguerreError: there is none, or its files are incomplete.
    """
    from daguerre.weights.diffusers.vae import load_first_stage  # imported here, because the embedded model does not need it

    path, chosen_device = resolve_path(source, offline), default_device(device)
    found = load_first_stage(path, device=chosen_device, dtype=dtype or torch.float32, scaling_factor=scaling_factor)
    if not isinstance(found, AutoencoderKL):
        raise DaguerreError(f"'{path}' has an autoencoder with a codebook; a KL autoencoder is needed.")
    return found


def vae_files(source: str | Path, *, offline: bool = False) -> tuple[Path, ...]:
    """The weight files that `load_vae` reads. Raises DaguerreError if there are none."""
    from daguerre.weights.diffusers.vae import first_stage_folder
    from daguerre.weights.tensors.reader import weight_files

    path = resolve_path(source, offline)
    return weight_files(path if path.is_file() else first_stage_folder(path))


def save(model: LatentDiffusion | LatentPrior, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a model as a folder. A diffusion model uses the diffusers layout (see `diffusers.save`).

    dtype: of a diffusion model's tensors. Default: unchanged.
    """
    folder = expand_user(folder)
    if isinstance(model, LatentDiffusion):
        if isinstance(model.autoencoder, IdentityAutoencoder):
            return save_pixel_folder(model, folder, dtype=dtype)
        from daguerre.weights.diffusers.save import save_folder

        return save_folder(model, folder, dtype=dtype)
    from daguerre.weights.diffusers.prior import save_latent_prior

    return save_latent_prior(model, folder)


def default_device(device: torch.device | str | None) -> torch.device:
    """The given device; by default, the first CUDA device or the CPU.

    Raises:
        DaguerreError: the device is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts if it was built without support for a device
        raise DaguerreError(f"The device {str(device)!r} is not available; use 'cpu', or 'cuda' with a GPU.") from error
    return chosen


def is_diffusion_model(path: Path) -> bool:
    """True if a path is a diffusion model, according to its index or tensor names."""
    if path.is_dir():
        return (path / INDEX).is_file() and str(read_json(path / INDEX).get("_class_name")).startswith(("StableDiffusion", "LDM"))
    return _taming(path) is None


def _is_latent_prior(path: Path) -> bool:
    return (path / INDEX).is_file() and read_json(path / INDEX).get("_class_name") == LATENT_PRIOR


def _taming(path: Path) -> "TensorFile | None":
    """The opened file of a taming-transformers first stage with its transformer; None for anything else."""
    if not path.is_file():
        return None
    from daguerre.weights.tensors.reader import open_tensors

    file = open_tensors(path)
    return file if "transformer.tok_emb.weight" in file.shapes else None


def resolve_path(source: str | Path | None, offline: bool, variant: str | None = None) -> Path:
    """The local path of a source of `load`. Raises DaguerreError if there is none."""
    if isinstance(source, str) and may_be_on_the_hub(source):
        from daguerre.weights.hub import resolve_hub_id

        return resolve_hub_id(source, offline=offline, variant=variant)
    return find(source)
