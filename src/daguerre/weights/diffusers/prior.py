"""Priors over codes on disk: config.json  diffusion_pytorch_model.safetensors.

The config names the class of ours, and by its hash the first stage whose codes the prior was trained on: over any other's it would only
draw noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from daguerre.atomic_io import atomic_path
from daguerre.errors import DaguerreError
from daguerre.models.latent_prior import Prior
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vq_model import VQModel
from daguerre.weights.diffusers.configs import choose_class
from daguerre.weights.diffusers.load import CONFIG, build, check_overwrite, read_part, write_part
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_json

PRIOR_CLASSES = {
    "TransformerPrior": (TransformerPrior, TransformerPriorConfig),
    "PixelCNN": (PixelCNN, PixelCNNConfig),
    "PixelSNAIL": (PixelSNAIL, PixelSNAILConfig),
}


def save_prior(prior: Prior, folder: str | Path, first_stage: VQModel) -> Path:
    """Write a prior, whole or not at all; an older one of that name is replaced. first_stage: whose codes it was trained on.

    Raises:
        DaguerreError: the place cannot be written, or holds something else. What stood there stands.
    """
    folder = Path(folder)
    check_overwrite(folder, CONFIG)
    with atomic_path(folder) as beside:
        write_prior(prior, beside, first_stage)
    return folder


def write_prior(prior: Prior, folder: Path, first_stage: VQModel) -> None:
    """Write a prior in place, for use inside an `atomic_path`; raises OSError where the disk is full."""
    config = {"_class_name": type(prior).__name__, **asdict(prior.config), "first_stage": {"sha256": network_hash(first_stage)}}
    write_part(folder, config, prior.state_dict())


def load_prior(
    folder: str | Path, first_stage: VQModel, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Prior:
    """Open a prior for the codes of this first stage, in the precision that it was trained in.

    Raises:
        DaguerreError: there is none, it is not whole, or it was trained on another first stage's codes.
    """
    folder = Path(folder)
    where = folder / CONFIG
    given = read_json(where)
    trained_on = given.get("first_stage", {}).get("sha256")
    if (found := network_hash(first_stage)) != trained_on:
        raise DaguerreError(
            f"The prior in '{folder}' was trained on the codes of another first stage (sha256 {str(trained_on)[:12]}, not {found[:12]}); "
            "give the one that it was trained with."
        )
    return build(lambda config: build_untrained(config, where), given, folder, read_part(folder, device=device, dtype=dtype))


def build_untrained(given: Mapping[str, Any], where: object) -> Prior:
    """The network of a prior's config, untrained. Raises DaguerreError where there is no such class, or it has no such option."""
    kind, config = choose_class(str(given.get("_class_name")), PRIOR_CLASSES, "prior", where)
    return kind(_config(config, {name: value for name, value in given.items() if name not in ("_class_name", "first_stage")}, where))


def _config(kind: type[Any], given: Mapping[str, Any], where: object) -> Any:
    """A config of ours from JSON, whose lists are tuples here."""
    known = {field.name for field in fields(kind)}
    if unknown := given.keys() - known:
        raise DaguerreError(f"'{where}' sets {', '.join(sorted(unknown))}, which a {kind.__name__} does not have.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
