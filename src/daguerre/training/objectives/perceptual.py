"""Load a perceptual distance for training and evaluation: LPIPS, or the features of a CLIP or an autoencoder.

LPIPS weights are read from any file that contains them: the published pair (VGG16 and the five linear layers), or the checkpoint of a VQGAN
or of Stable Diffusion's autoencoder, which has both under `loss.perceptual_loss.` (arXiv:1801.03924; arXiv:2012.09841).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.lpips import LPIPS, EncoderFeatures, FeatureDistance, VisionFeatureMaps
from daguerre.nn.meta import fill
from daguerre.weights import load_clip, load_first_stage
from daguerre.weights.catalog import clip_folder
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.reader import open_tensors
from daguerre.weights.tensors.safetensors import read_json

VGG = re.compile(r"(?:.*\.)?(?:net\.slice\d|features)\.(\d+)\.(weight|bias)")
LINEAR = re.compile(r"(?:.*\.)?lin(\d)\.model\.1\.weight")


@dataclass(frozen=True)
class PerceptualLoss:
    """distance: maps two batches of images (B, 3, H, W) in [−1, 1] to (B,). key: the hash of its weights."""

    distance: LPIPS | FeatureDistance
    name: str
    key: str

    def embed(self, x: Tensor) -> Tensor:
        """The features of each image, averaged over positions and concatenated over layers: (B, D), for distances between sets."""
        maps = self.distance.feature_maps(x) if isinstance(self.distance, LPIPS) else self.distance.features(x)
        return torch.cat([state.mean(dim=(2, 3)) for state in maps], dim=1)


def load_perceptual(paths: Sequence[Path]) -> PerceptualLoss:
    """Load a perceptual distance from one or two files with LPIPS weights, or the directory of a CLIP or an autoencoder; "clip" is the
    embedded CLIP.

    Raises:
        DaguerreError: the paths are none of these; the message names what is missing.
    """
    if len(paths) == 1 and (folder := clip_folder(paths[0])).is_dir():
        return _from_folder(folder)
    if not 1 <= len(paths) <= 2 or any(path.is_dir() for path in paths):
        raise DaguerreError(
            f"{', '.join(map(str, paths)) or 'Nothing'} is no perceptual network; give the directory of a CLIP or an autoencoder, or "
            "one or two files with the weights of VGG16 and LPIPS."
        )
    return _from_files(paths)


def _from_files(paths: Sequence[Path]) -> PerceptualLoss:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        file = open_tensors(path)
        names = {name: canonical for name in file.shapes if (canonical := _canonical_name(name)) is not None}
        tensors |= {names[name]: tensor.float() for name, tensor in file.read(names).items()}
    network = LPIPS()
    fill(network, tensors, " and ".join(map(str, paths)))
    return _build(network, "LPIPS")


def _canonical_name(original: str) -> str | None:
    """The name in models.lpips of a published LPIPS tensor; None for any other tensor."""
    if match := VGG.fullmatch(original):
        return f"features.{match[1]}.{match[2]}"
    match = LINEAR.fullmatch(original)
    return f"lin{match[1]}.model.1.weight" if match else None


def _from_folder(folder: Path) -> PerceptualLoss:
    config = folder / "config.json"
    if config.is_file() and "CLIPModel" in (read_json(config).get("architectures") or []):
        tower = load_clip(folder)[0].vision_model
        return _build(FeatureDistance(VisionFeatureMaps(tower, *image_normalization(folder))), f"CLIP {folder}")
    return _build(FeatureDistance(EncoderFeatures(load_first_stage(folder).encoder)), f"encoder {folder}")


def image_normalization(folder: Path) -> list[list[float]]:
    """Mean and standard deviation of the image normalization of a published CLIP; empty for a CLIP trained here, which has none."""
    path = folder / "preprocessor_config.json"
    return [read_json(path)[name] for name in ("image_mean", "image_std")] if path.is_file() else []


def _build(distance: LPIPS | FeatureDistance, name: str) -> PerceptualLoss:
    return PerceptualLoss(distance.eval(), name, network_hash(distance))
