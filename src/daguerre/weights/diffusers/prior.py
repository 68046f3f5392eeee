"""Priors over codes on disk, alone or together with their first stage.

    config.json  diffusion_pytorch_model.safetensors     a prior alone

    model_index.json        a complete model: the class, the image size in pixels, and the kind of prefix
    vqvae/  prior/          config.json, diffusion_pytorch_model.safetensors
    tokenizer/              of a text prefix
    map_vqvae/              of a map prefix: the first stage that encodes maps

The config of a prior holds the hash of its first stage, because with any other codebook it generates only noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from daguerre.atomic_io import atomic_path, check_overwrite
from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, EmptyPrefix, LayoutPrefix, MapPrefix, Prefixes, TextPrefix
from daguerre.conditioning.tokenizer import Tokenizer
from daguerre.errors import DaguerreError
from daguerre.models.latent_prior import LatentPrior, Prior
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vq_model import VQModel
from daguerre.weights.catalog import INDEX, LATENT_PRIOR
from daguerre.weights.diffusers.config_fields import choose
from daguerre.weights.diffusers.folder_names import CONFIG_FILE, DIFFUSERS_WEIGHTS
from daguerre.weights.diffusers.load import build, read_part, write_part
from daguerre.weights.diffusers.vae import load_first_stage, write_first_stage
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_json, write_json

PRIOR_CLASSES = {
    "TransformerPrior": (TransformerPrior, TransformerPriorConfig),
    "PixelCNN": (PixelCNN, PixelCNNConfig),
    "PixelSNAIL": (PixelSNAIL, PixelSNAILConfig),
}
FIRST_STAGE_FOLDER, PRIOR_FOLDER, TOKENIZER_FOLDER, MAP_FOLDER = "vqvae", "prior", "tokenizer", "map_vqvae"


def save_prior(prior: Prior, folder: str | Path, first_stage: VQModel) -> Path:
    """Write a prior atomically, replacing an older one. `first_stage` is the one whose codes it was trained on.

    Raises:
        DaguerreError: the folder cannot be written or holds something else; its content is unchanged.
    """
    folder = Path(folder)
    check_overwrite(folder, CONFIG_FILE)
    with atomic_path(folder) as temporary:
        _write_prior(prior, temporary, first_stage)
    return folder


def load_prior(
    folder: str | Path, first_stage: VQModel, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Prior:
    """Load a prior for the codes of this first stage, which must have the dtype that it was trained in.

    Raises:
        DaguerreError: the prior is missing, incomplete, or was trained on the codes of another first stage.
    """
    folder = Path(folder)
    where = folder / CONFIG_FILE
    given = read_json(where)
    expected = given.get("first_stage", {}).get("sha256")
    if (found := network_hash(first_stage)) != expected:
        raise DaguerreError(
            f"The prior in '{folder}' was trained on the codes of another first stage (sha256 {str(expected)[:12]}, not {found[:12]}); "
            "give the one that it was trained with."
        )
    return build(lambda config: build_untrained(config, where), given, folder, read_part(folder, device=device, dtype=dtype))


def build_untrained(given: Mapping[str, Any], where: object) -> Prior:
    """An untrained prior with the config of a `config.json`. Raises DaguerreError if the class or an option is unknown."""
    network, config = choose(str(given.get("_class_name")), PRIOR_CLASSES, "prior", where)
    options = {name: value for name, value in given.items() if name not in ("_class_name", "first_stage")}
    return network(_config(config, options, where))


def _config(kind: type[Any], given: Mapping[str, Any], where: object) -> Any:
    """A config dataclass from JSON, whose lists become tuples."""
    if unknown := given.keys() - {field.name for field in fields(kind)}:
        raise DaguerreError(f"'{where}' sets {', '.join(sorted(unknown))}, which a {kind.__name__} does not have.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def save_latent_prior(model: LatentPrior, folder: str | Path) -> Path:
    """Write a first stage with its prior atomically, replacing an older model.

    Raises:
        DaguerreError: the folder cannot be written or holds something else; its content is unchanged.
    """
    folder = Path(folder)
    check_overwrite(folder, INDEX)
    with atomic_path(folder) as temporary:
        write_first_stage(model.autoencoder, temporary / FIRST_STAGE_FOLDER, model.sample_size)
        _write_prior(model.prior, temporary / PRIOR_FOLDER, model.autoencoder)
        prefix = _write_prefix(model, temporary)
        write_json(temporary / INDEX, {"_class_name": LATENT_PRIOR, "size": model.sample_size, "prefix": prefix})
    return folder


def load_latent_prior(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentPrior:
    """Load a first stage with its prior; the model has the name of the folder.

    Raises:
        DaguerreError: a part is missing or does not match its config, or the prior was trained on another first stage.
    """
    index = read_json(folder / INDEX)
    if index.get("_class_name") != LATENT_PRIOR or not isinstance(index.get("prefix"), dict) or not isinstance(index.get("size"), int):
        raise DaguerreError(f"'{folder / INDEX}' does not describe a prior over codes; `daguerre train prior` writes one that does.")
    # Load in float32 first, because the hash that identifies the first stage changes with its dtype.
    autoencoder = require_codebook(load_first_stage(folder / FIRST_STAGE_FOLDER, device=device), folder / FIRST_STAGE_FOLDER)
    prior = load_prior(folder / PRIOR_FOLDER, autoencoder, device=device)
    prefix = _read_prefix(index["prefix"], folder, autoencoder, device)
    files = (folder / part / DIFFUSERS_WEIGHTS for part in (FIRST_STAGE_FOLDER, PRIOR_FOLDER, MAP_FOLDER))
    files = tuple(path for path in files if path.is_file())
    return LatentPrior(prior, autoencoder, prefix, folder.resolve().name, index["size"], files).to(dtype=dtype)


def require_codebook(network: object, where: object) -> VQModel:
    """Return the network as a `VQModel`. Raises DaguerreError if it has no codebook."""
    if not isinstance(network, VQModel):
        raise DaguerreError(f"'{where}' has no codebook, so there are no codes to learn; give the folder of a VQ-VAE or a VQGAN.")
    return network


def _write_prior(prior: Prior, folder: Path, first_stage: VQModel) -> None:
    config = {"_class_name": type(prior).__name__, **asdict(prior.config), "first_stage": {"sha256": network_hash(first_stage)}}
    write_part(folder, config, prior.state_dict())


def _write_prefix(model: LatentPrior, folder: Path) -> dict[str, Any]:
    """Write the files of a prefix and return its entry in the index."""
    match prefix := model.prefix:
        case EmptyPrefix():
            return {"kind": "none"}
        case ClassPrefix():
            return {"kind": "class", "names": list(prefix.names)}
        case TextPrefix():
            prefix.tokenizer.save(folder / TOKENIZER_FOLDER)
            return {"kind": "text"}
        case LayoutPrefix():
            return {"kind": "layout", "tokens": prefix.tokens, "length": prefix.length}
        case MapPrefix():
            write_first_stage(prefix.autoencoder, folder / MAP_FOLDER, model.sample_size)
            return {"kind": "map", "map": prefix.kind, "palette": [list(colour) for colour in prefix.palette]}
        case CoordinatePrefix():
            return {"kind": "coordinates", "tokens": prefix.tokens}
    raise DaguerreError(f"A prior with a {type(prefix).__name__} cannot be saved.")


def _read_prefix(given: Mapping[str, Any], folder: Path, autoencoder: VQModel, device: torch.device | str) -> Prefixes:
    match given:
        case {"kind": "none"}:
            return EmptyPrefix()
        case {"kind": "class", "names": names}:
            return ClassPrefix(tuple(names))
        case {"kind": "text"}:
            return TextPrefix(Tokenizer.from_folder(folder / TOKENIZER_FOLDER))
        case {"kind": "layout", "tokens": tokens, "length": length}:
            return LayoutPrefix(tokens, length)
        case {"kind": "map", "map": kind, "palette": palette}:
            maps = require_codebook(load_first_stage(folder / MAP_FOLDER, device=device), folder / MAP_FOLDER)
            return MapPrefix(maps, kind, tuple((r, g, b) for r, g, b in palette))
        case {"kind": "coordinates", "tokens": tokens}:
            return CoordinatePrefix(tokens, autoencoder.downsample_factor)
    raise DaguerreError(f"'{folder / INDEX}' gives the prior a prefix of the kind {given.get('kind')!r}, which is not supported.")
