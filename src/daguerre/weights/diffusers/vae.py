"""First stages on disk: KL autoencoders and vector-quantised ones, in a folder that diffusers' `AutoencoderKL` and `VQModel` open too.

    config.json  diffusion_pytorch_model.safetensors

What that layout has no words for, how a codebook learns, stands in `_quantizer`, which other readers pass over.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from daguerre.atomic_io import atomic_path
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.configs import Json, autoencoder_config, autoencoder_json, check_fixed
from daguerre.weights.diffusers.load import CONFIG, build, check_overwrite, load_autoencoder, read_first_stage, write_part
from daguerre.weights.tensors.safetensors import config_errors, read_json

FirstStage = AutoencoderKL | VQModel
FIRST_STAGE_PARTS = ("vae", "vqvae", "first_stage")  # of a first stage in a whole model's folder
SHARED = {field.name for field in fields(VQModelConfig)} & {field.name for field in fields(AutoencoderKLConfig)}
KL_ONLY = ("use_quant_conv", "use_post_quant_conv", "shift_factor")
VQ_FIXED: Mapping[str, tuple[object, ...]] = {"norm_type": ("group",)}
_KEY_OF_FIELD = {"dead_code_threshold": "revive"}  # names in saved configs that differ from the fields of `QuantizerConfig`
_FIELD_OF_KEY = {key: field for field, key in _KEY_OF_FIELD.items()}


def save_first_stage(network: FirstStage, folder: str | Path, size: int = 256) -> Path:
    """Write a first stage, whole or not at all; an older one of that name is replaced. size: of its own pictures, in pixels.

    Raises:
        DaguerreError: the place cannot be written, or holds something else. What stood there stands.
    """
    folder = Path(folder)
    check_overwrite(folder, CONFIG)
    with atomic_path(folder) as beside:
        write_first_stage(network, beside, size)
    return folder


def write_first_stage(network: FirstStage, folder: Path, size: int) -> None:
    """Write a first stage in place, for use inside an `atomic_path`; raises OSError where the disk is full."""
    write_part(folder, first_stage_json(network.config, size), network.state_dict())


def load_first_stage(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, scaling_factor: float | None = None
) -> FirstStage:
    """Open a first stage: its own folder, that of a whole model, or a published single file of taming or latent diffusion.

    Args:
        scaling_factor: of its latents, where a file does not say; None: 0.18215 for a KL autoencoder, 1 for a vector-quantised one.

    Raises:
        DaguerreError: there is none, or it is not whole.
    """
    path = Path(source)
    if path.is_file():
        from daguerre.weights.original.load import load_first_stage_file  # knows the names of single files, which folders do without

        return load_first_stage_file(path, scaling_factor=scaling_factor, device=device, dtype=dtype)
    folder = first_stage_folder(path)
    given = read_json(folder / CONFIG)
    match kind := given.get("_class_name"):
        case "AutoencoderKL":
            return load_autoencoder(folder, device=device, dtype=dtype)
        case "VQModel":
            tensors = read_first_stage(folder, device=device, dtype=dtype)
            with config_errors(folder):
                return build(VQModel, vq_config(given, folder / CONFIG), folder, tensors)
    raise DaguerreError(f"'{folder}' holds a {kind}; a first stage is an AutoencoderKL or a VQModel.")


def first_stage_folder(path: Path) -> Path:
    """Where the first stage of a folder lies: there, or in a part of a whole model's. Raises DaguerreError where there is none."""
    folder = (
        next((path / place for place in FIRST_STAGE_PARTS if (path / place / CONFIG).is_file()), path) if (path / INDEX).is_file() else path
    )
    if not (folder / CONFIG).is_file():
        raise DaguerreError(f"'{path}' is not a first stage: one is a checkpoint file, or a folder with a {CONFIG} and its weights in it.")
    return folder


def vq_config(given: Mapping[str, Any], where: object) -> VQModelConfig:
    """Read the config of a `VQModel`.

    Raises:
        DaguerreError: an option that our VQModel does not have.
    """
    check_fixed(given, VQ_FIXED, where)
    rest = autoencoder_config({"latent_channels": 3, "scaling_factor": 1.0, **given}, where)
    learning = {_FIELD_OF_KEY.get(name, str(name)): value for name, value in given.get("_quantizer", {}).items()}
    if learning.get("kind") == "average":
        learning["kind"] = "ema"
    unknown = learning.keys() - {field.name for field in fields(QuantizerConfig)}
    if unknown:
        raise DaguerreError(f"'{where}' sets {', '.join(sorted(unknown))} of a codebook, which there is not here.")
    codes, width = given.get("num_vq_embeddings", 256), given.get("vq_embed_dim") or rest.latent_channels
    return VQModelConfig(QuantizerConfig(**{**learning, "codes": codes, "width": width}), **{name: getattr(rest, name) for name in SHARED})


def first_stage_json(config: AutoencoderKLConfig | VQModelConfig, size: int) -> Json:
    """The config of an `AutoencoderKL` or a `VQModel`; `size` is the side of its own pictures."""
    return vq_json(config, size) if isinstance(config, VQModelConfig) else autoencoder_json(config, size)


def vq_json(config: VQModelConfig, size: int) -> Json:
    """The config of a `VQModel`; `size` is the side of its own pictures."""
    like = autoencoder_json(AutoencoderKLConfig(**{name: getattr(config, name) for name in SHARED}), size)
    learning = asdict(config.quantizer)
    codes, width = learning.pop("codes"), learning.pop("width")
    return {
        **{name: value for name, value in like.items() if name not in KL_ONLY},
        "_class_name": "VQModel",
        "_quantizer": {_KEY_OF_FIELD.get(name, name): "average" if value == "ema" else value for name, value in learning.items()},
        "num_vq_embeddings": codes,
        "vq_embed_dim": width,
    }
