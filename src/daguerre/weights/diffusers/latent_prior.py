"""A first stage with a prior over its codes, as one folder.

    model_index.json        the class, the side of the pictures in pixels, and what the prior is told
    vqvae/  prior/          config.json, diffusion_pytorch_model.safetensors
    tokenizer/              where it is told a text
    map_vqvae/              where it is told a map: the first stage of maps

The prior names its first stage by hash, so that no other can take its place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from daguerre.atomic_io import atomic_path
from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, EmptyPrefix, LayoutPrefix, MapPrefix, Prefixes, TextPrefix
from daguerre.conditioning.tokenizer import Tokenizer
from daguerre.errors import DaguerreError
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.vq_model import VQModel
from daguerre.weights.catalog import INDEX, LATENT_PRIOR
from daguerre.weights.diffusers.load import NETWORK_WEIGHTS, check_overwrite
from daguerre.weights.diffusers.prior import load_prior, write_prior
from daguerre.weights.diffusers.vae import load_first_stage, write_first_stage
from daguerre.weights.tensors.safetensors import read_json, write_json

FIRST_STAGE, PRIOR, TOKENIZER, MAPS = "vqvae", "prior", "tokenizer", "map_vqvae"


def save_latent_prior(model: LatentPrior, folder: str | Path) -> Path:
    """Write a whole model; an older one of that name is replaced.

    Raises:
        DaguerreError: the place cannot be written, or holds something else. What stood there stands.
    """
    folder = Path(folder)
    check_overwrite(folder, INDEX)
    with atomic_path(folder) as beside:
        write_first_stage(model.autoencoder, beside / FIRST_STAGE, model.sample_size)
        write_prior(model.prior, beside / PRIOR, model.autoencoder)
        prefix = _put_prefix(model, beside)
        write_json(beside / INDEX, {"_class_name": LATENT_PRIOR, "size": model.sample_size, "prefix": prefix})
    return folder


def load_latent_prior(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentPrior:
    """Read a whole model; its name is the folder's.

    Raises:
        DaguerreError: a part is missing or does not fit its config, or the prior was trained on another first stage.
    """
    index = read_json(folder / INDEX)
    if index.get("_class_name") != LATENT_PRIOR or not isinstance(index.get("prefix"), dict) or not isinstance(index.get("size"), int):
        raise DaguerreError(f"'{folder / INDEX}' does not describe a prior over codes; `daguerre train prior` writes one that does.")
    # In full precision first, for the prior knows its first stage by a hash that rounding changes.
    autoencoder = codebook(load_first_stage(folder / FIRST_STAGE, device=device), folder / FIRST_STAGE)
    prior = load_prior(folder / PRIOR, autoencoder, device=device)
    prefix = _prefix(index["prefix"], folder, autoencoder, device)
    files = tuple(path for part in (FIRST_STAGE, PRIOR, MAPS) if (path := folder / part / NETWORK_WEIGHTS).is_file())
    return LatentPrior(prior, autoencoder, prefix, folder.resolve().name, index["size"], files).to(dtype=dtype)


def codebook(network: object, where: object) -> VQModel:
    """The same network. Raises DaguerreError where it has no codebook, so that no prior can be over its codes."""
    if not isinstance(network, VQModel):
        raise DaguerreError(f"'{where}' has no codebook, so there are no codes to learn; give a VQ-VAE's or a VQGAN's folder.")
    return network


def _put_prefix(model: LatentPrior, folder: Path) -> dict[str, Any]:
    match prefix := model.prefix:
        case EmptyPrefix():
            return {"kind": "none"}
        case ClassPrefix():
            return {"kind": "class", "names": list(prefix.names)}
        case TextPrefix():
            prefix.tokenizer.save(folder / TOKENIZER)
            return {"kind": "text"}
        case LayoutPrefix():
            return {"kind": "layout", "tokens": prefix.tokens, "length": prefix.length}
        case MapPrefix():
            write_first_stage(prefix.autoencoder, folder / MAPS, model.sample_size)
            return {"kind": "map", "map": prefix.kind, "palette": [list(colour) for colour in prefix.palette]}
        case CoordinatePrefix():
            return {"kind": "coordinates", "tokens": prefix.tokens}
    raise DaguerreError(f"A prior that is told by a {type(prefix).__name__} has no place in a folder.")


def _prefix(given: Mapping[str, Any], folder: Path, autoencoder: VQModel, device: torch.device | str) -> Prefixes:
    match given:
        case {"kind": "none"}:
            return EmptyPrefix()
        case {"kind": "class", "names": names}:
            return ClassPrefix(tuple(names))
        case {"kind": "text"}:
            return TextPrefix(Tokenizer.from_folder(folder / TOKENIZER))
        case {"kind": "layout", "tokens": tokens, "length": length}:
            return LayoutPrefix(tokens, length)
        case {"kind": "map", "map": kind, "palette": palette}:
            maps = codebook(load_first_stage(folder / MAPS, device=device), folder / MAPS)
            return MapPrefix(maps, kind, tuple((r, g, b) for r, g, b in palette))
        case {"kind": "coordinates", "tokens": tokens}:
            return CoordinatePrefix(tokens, autoencoder.downsample_factor)
    raise DaguerreError(f"'{folder / INDEX}' tells the prior by {given.get('kind')!r}, which there is not here.")
