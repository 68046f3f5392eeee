"""The eyes that a first stage is trained and judged by, from what a person has: LPIPS, a CLIP, or an autoencoder.

LPIPS's weights are found in any file that holds them: the published pair (VGG16's and the five linear layers'), or the checkpoint of a
VQGAN or of Stable Diffusion's autoencoder, which carries both under `loss.perceptual_loss.` (arXiv:1801.03924; arXiv:2012.09841).
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
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.reader import open_tensors
from daguerre.weights.tensors.safetensors import read_json

VGG = re.compile(r"(?:.*\.)?(?:net\.slice\d|features)\.(\d+)\.(weight|bias)")
LINEAR = re.compile(r"(?:.*\.)?lin(\d)\.model\.1\.weight")


@dataclass(frozen=True)
class PerceptualLoss:
    """distance: pictures (B, 3, H, W) in [−1, 1], twice, to (B,). key: the hash of its weights."""

    distance: LPIPS | FeatureDistance
    name: str
    key: str

    def embed(self, x: Tensor) -> Tensor:
        """Each picture's features averaged over its places, layer beside layer: (B, D), for distances between sets."""
        maps = self.distance.feature_maps(x) if isinstance(self.distance, LPIPS) else self.distance.features(x)
        return torch.cat([state.mean(dim=(2, 3)) for state in maps], dim=1)


def load_perceptual(paths: Sequence[Path]) -> PerceptualLoss:
    """Open a perceptual distance: one or two files with LPIPS's weights, a CLIP's folder, or a folder with an autoencoder.

    Raises:
        DaguerreError: there is none of these; says what is missing.
    """
    if len(paths) == 1 and paths[0].is_dir():
        return _of_folder(paths[0])
    if not 1 <= len(paths) <= 2 or any(path.is_dir() for path in paths):
        raise DaguerreError(
            "A perceptual distance is one folder (a CLIP's or an autoencoder's), or one or two files with the weights of VGG16 and LPIPS; "
            f"given {', '.join(map(str, paths)) or 'nothing'}."
        )
    return _of_files(paths)


def _of_files(paths: Sequence[Path]) -> PerceptualLoss:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        file = open_tensors(path)
        names = {name: ours for name in file.shapes if (ours := _name(name)) is not None}
        tensors |= {names[name]: tensor.float() for name, tensor in file.read(names).items()}
    network = LPIPS()
    fill(network, tensors, " and ".join(map(str, paths)))
    return _named(network, "LPIPS")


def _name(theirs: str) -> str | None:
    """Our name of one of LPIPS's tensors; None for what is not its."""
    if match := VGG.fullmatch(theirs):
        return f"features.{match[1]}.{match[2]}"
    match = LINEAR.fullmatch(theirs)
    return f"lin{match[1]}.model.1.weight" if match else None


def _of_folder(folder: Path) -> PerceptualLoss:
    config = folder / "config.json"
    if config.is_file() and "CLIPModel" in (read_json(config).get("architectures") or []):
        tower = load_clip(folder)[0].vision_model
        return _named(FeatureDistance(VisionFeatureMaps(tower, *_normalisation(folder))), f"CLIP {folder}")
    return _named(FeatureDistance(EncoderFeatures(load_first_stage(folder).encoder)), f"encoder {folder}")


def _normalisation(folder: Path) -> list[list[float]]:
    """What a published CLIP's pictures are normalised by; nothing for ours, which take them as they are."""
    path = folder / "preprocessor_config.json"
    return [read_json(path)[name] for name in ("image_mean", "image_std")] if path.is_file() else []


def _named(distance: LPIPS | FeatureDistance, name: str) -> PerceptualLoss:
    return PerceptualLoss(distance.eval(), name, network_hash(distance))
