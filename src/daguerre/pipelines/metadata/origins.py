"""Where the pictures of a walk come from: the request, the model by name and hash, and all else that their bytes depend on."""

import os
from pathlib import Path

import torch

from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.pipelines.metadata.write import Provenance
from daguerre.pipelines.request import Request
from daguerre.version import VERSION
from daguerre.weights.catalog import ASSETS, INDEX
from daguerre.weights.hashing import files_hash


def provenance_of(model: LatentDiffusion | LatentPrior, request: Request) -> Provenance:
    """The origin that the pictures of a request share; each then has its place in it."""
    return Provenance(
        request=request,
        index=None,
        model=model.name,
        version=VERSION,
        torch=torch.__version__,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        model_hash=files_hash(model.files) if model.files else None,
        model_path=_place(model.files),
    )


def _place(files: tuple[Path, ...]) -> str | None:
    """The file or the folder that a model was read from, as it was named; None for those inside the package, and for several together."""
    if not files:
        return None
    if len({file.is_absolute() for file in files}) > 1:  # an autoencoder from elsewhere
        return None
    place = Path(files[0] if len(files) == 1 else os.path.commonpath(files))
    alone = place.is_file() or (place / INDEX).is_file()
    return str(place) if alone and not place.resolve().is_relative_to(ASSETS.resolve()) else None
