"""Published files of a VQGAN with its transformer, as taming-transformers wrote them: `transformer.`, `first_stage_model.`, and, where the
transformer is told by a map (depth, segmentation), `cond_stage_model.` (Esser et al. 2021, arXiv:2012.09841, table 8).

Where there is no such network, the transformer's places tell what stands before the picture's 16×16 codes: as many coordinates, one class,
or the boxes of up to 30 objects.
"""

from pathlib import Path

import torch

from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, LayoutPrefix, MapPrefix, Prefixes
from daguerre.errors import DaguerreError, join_names
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vq_model import VQModel
from daguerre.nn.meta import fill
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import DetectedModel, detect
from daguerre.weights.tensors.reader import TensorFile

TAMING_CLASSES = 1000  # ImageNet's
LAYOUT = 3 * 30 + 2  # tokens of 30 objects and of the crop


def load_taming(file: TensorFile, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentPrior:
    """Open a first stage with its transformer; classes are told by their numbers.

    Raises:
        DaguerreError: a part is missing or does not fit, or what the transformer is told cannot be known.
    """
    about = detect(file)
    if lost := [part for part in ("transformer", "vae") if part not in about.contents.parts]:
        held = ", ".join(about.contents.parts)
        raise DaguerreError(f"'{file.path}' holds only {held}; a whole model of this kind also has {', '.join(lost)}.")
    if faults := {what: names for what, names in about.key_errors().items() if names}:
        lists = "; ".join(f"{len(names)} {what} ({join_names(names)})" for what, names in faults.items())
        raise DaguerreError(f"'{file.path}' does not fit the networks that it looks like: {lists}.")
    parts = split_components(file.read(name for name in file.shapes if name not in about.contents.ignored)).parts
    for name, network in about.networks.items():
        tensors = {key: tensor.to(device, dtype) for key, tensor in about.canonical(parts[name]).items()}
        fill(network.eval(), tensors, file.path)
    prior, first_stage = about.networks["transformer"], about.networks["vae"]
    assert isinstance(prior, TransformerPrior)
    if not isinstance(first_stage, VQModel):
        raise DaguerreError(f"'{file.path}' has a first stage without a codebook, over which there are no codes to draw.")
    size = prior.config.grid[0] * first_stage.downsample_factor
    return LatentPrior(prior, first_stage, _prefix(about, prior.config, first_stage), Path(file.path).stem, size)


def _prefix(about: DetectedModel, prior: TransformerPriorConfig, first_stage: VQModel) -> Prefixes:
    maps, cells = about.networks.get("condition"), prior.grid[0] * prior.grid[1]
    if isinstance(maps, VQModel):
        return MapPrefix(maps, "semantic" if maps.config.in_channels != 3 else "depth")
    if prior.length == 2 * cells:
        return CoordinatePrefix(first_stage.config.quantizer.codes, first_stage.downsample_factor)
    if prior.length == cells:
        return ClassPrefix(tuple(str(number) for number in range(min(TAMING_CLASSES, prior.codes))))
    if prior.length == cells + LAYOUT:
        return LayoutPrefix(prior.codes, LAYOUT)
    raise DaguerreError(
        f"'{about.file.path}' has a transformer of {prior.length} places for {cells} codes; what stands before them is not known here: "
        "those of coordinates, of maps, of classes and of boxes are."
    )
