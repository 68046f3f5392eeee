"""Load a VQGAN with its transformer from one file of taming-transformers (Esser et al. 2021, arXiv:2012.09841, table 8).

The file has the prefixes `transformer.`, `first_stage_model.` and, for a transformer conditioned on a map (depth, segmentation),
`cond_stage_model.`. Without the latter, the length of the transformer determines the prefix before the 16×16 codes of an image: as many
coordinates, one class, or the bounding boxes of up to 30 objects.
"""

from pathlib import Path

import torch

from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, LayoutPrefix, MapPrefix, Prefixes
from daguerre.errors import DaguerreError
from daguerre.models.latent_prior import LatentPrior
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.vq_model import VQModel
from daguerre.nn.meta import fill
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import DetectedModel, detect
from daguerre.weights.tensors.reader import TensorFile

IMAGENET_CLASSES = 1000
LAYOUT_TOKENS = 3 * 30 + 2  # three for each of 30 objects, and two for the crop


def load_taming(file: TensorFile, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentPrior:
    """Load a first stage with its transformer; classes have numbers as names.

    Raises:
        DaguerreError: a part is missing or does not fit, or the kind of prefix cannot be determined.
    """
    detected = detect(file)
    if missing := [part for part in ("transformer", "vae") if part not in detected.contents.parts]:
        held = ", ".join(detected.contents.parts)
        raise DaguerreError(f"'{file.path}' holds only {held}; a complete model of this kind also has {', '.join(missing)}.")
    detected.check_keys()
    parts = split_components(file.read(name for name in file.shapes if name not in detected.contents.ignored)).parts
    for name, network in detected.networks.items():
        tensors = {key: tensor.to(device, dtype) for key, tensor in detected.canonical(parts[name]).items()}
        fill(network.eval(), tensors, file.path)
    prior, first_stage = detected.networks["transformer"], detected.networks["vae"]
    assert isinstance(prior, TransformerPrior)
    if not isinstance(first_stage, VQModel):
        raise DaguerreError(f"'{file.path}' has a first stage without a codebook, so its transformer cannot generate codes for it.")
    sample_size = prior.config.grid[0] * first_stage.downsample_factor
    return LatentPrior(prior, first_stage, _prefix(detected, prior.config, first_stage), Path(file.path).stem, sample_size)


def _prefix(detected: DetectedModel, prior: TransformerPriorConfig, first_stage: VQModel) -> Prefixes:
    map_stage, codes = detected.networks.get("condition"), prior.grid[0] * prior.grid[1]
    if isinstance(map_stage, VQModel):
        return MapPrefix(map_stage, "semantic" if map_stage.config.in_channels != 3 else "depth")
    if prior.length == 2 * codes:
        return CoordinatePrefix(first_stage.config.quantizer.codes, first_stage.downsample_factor)
    if prior.length == codes:
        return ClassPrefix(tuple(str(number) for number in range(min(IMAGENET_CLASSES, prior.codes))))
    if prior.length == codes + LAYOUT_TOKENS:
        return LayoutPrefix(prior.codes, LAYOUT_TOKENS)
    raise DaguerreError(
        f"'{detected.file.path}' has a transformer of length {prior.length} for {codes} codes, so the kind of its prefix is unknown; "
        "supported are coordinates, maps, classes and bounding boxes."
    )
