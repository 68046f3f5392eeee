"""What a prior is trained on: pictures and their maps, part of them kept for measuring, as codes with what the prior is told of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, EmptyPrefix, MapPrefix, Prefixes, TextPrefix
from daguerre.data import BatchLoader, Dataset, FolderDataset, ShapesDataset, ShapesMix
from daguerre.data.condition_maps import ConditionMaps
from daguerre.data.dataset import Sample, Subset
from daguerre.errors import DaguerreError
from daguerre.models.latent_prior import PriorInputs
from daguerre.models.vq_model import VQModel
from daguerre.training.datasets.latents import cache_codes
from daguerre.training.loop import fingerprint, weights_key
from daguerre.training.objectives.prior import CodeBatch

HELD_OUT_SHARE = 10  # of a folder's pictures every tenth is kept for measuring
MAX_CLASSES = 1000
ENCODE_BATCH = 50  # pictures encoded in one call


class PriorDataset(NamedTuple):
    """Pictures, and their maps where the prior is told by them, sample for sample. drawn: anew each time, without end."""

    images: Dataset
    maps: ConditionMaps | None = None
    drawn: bool = True

    def enough(self, count: int, crops: int) -> int:
        """`count`, but of pictures that are not drawn no more than `crops` of each."""
        return count if self.drawn else min(count, crops * len(self.images))

    def part(self, indices: Sequence[int], name: str) -> "PriorDataset":
        """The samples of these numbers."""

        def of(source: Dataset) -> Subset:
            return Subset(source.size, f"{name} part of {source.key}", source.sample, indices)

        return self._replace(images=of(self.images), maps=self.maps and ConditionMaps(of(self.maps.source), self.maps.palette))


class EncodedCodes(NamedTuple):
    """Codes and conditions of N pictures, and the words that go with each."""

    batch: CodeBatch
    captions: list[str]


@dataclass(frozen=True)
class CodeEncoder:
    """Encodes material once, and keeps the codes in `folder`."""

    first_stage: VQModel
    prefix: Prefixes
    folder: Path
    workers: int = 1

    def __call__(self, material: PriorDataset, count: int, seed: int) -> EncodedCodes:
        """`count` pictures, drawn by a seed."""
        codes, captions = self._codes(material.images, self.first_stage, count, seed)
        maps = None
        if isinstance(self.prefix, MapPrefix) and material.maps is not None:
            maps, _ = self._codes(material.maps.source, self.prefix.autoencoder, count, seed)
        return EncodedCodes(CodeBatch(codes, conditions(self.prefix, codes, captions, maps)), captions)

    def _codes(self, source: Dataset, network: VQModel, count: int, seed: int) -> tuple[Tensor, list[str]]:
        key = fingerprint(source.key, seed, weights_key(network))
        codes, captions = cache_codes(BatchLoader(source, min(count, ENCODE_BATCH), seed), network, count, self.folder, key, self.workers)
        return codes[:count], captions[:count]


def conditions(prefix: Prefixes, codes: Tensor, captions: Sequence[str], maps: Tensor | None) -> Tensor | None:
    """The condition of each grid of codes (N, h, w): a row (N, P), a grid (N, h', w'), or None. maps: the codes of the pictures' maps."""
    match prefix:
        case EmptyPrefix():
            return None
        case ClassPrefix():
            return prefix.labels(captions)
        case TextPrefix():
            return prefix.tokenizer(captions)
        case MapPrefix():
            return maps
        case CoordinatePrefix():
            return prefix(PriorInputs([""], (codes.shape[1], codes.shape[2]))).expand(len(codes), -1, -1)


def split_held_out(material: PriorDataset) -> tuple[PriorDataset, PriorDataset, bool]:
    """What is trained on, what is measured on, and whether no picture is in both.

    Every tenth picture of a folder is kept for measuring; drawn pictures are drawn anew for it.
    """
    count = len(material.images)
    if material.drawn or count < 2 * HELD_OUT_SHARE:
        return material, material, material.drawn
    everywhere = range(count)
    return (
        material.part([i for i in everywhere if i % HELD_OUT_SHARE], "trained"),
        material.part(everywhere[::HELD_OUT_SHARE], "measured"),
        True,
    )


def shapes_by_class(size: int) -> Subset:
    """Drawn shapes, one kind in each picture, whose caption is the shape."""
    shapes = ShapesDataset(size, mix=ShapesMix(pair=0))

    def named(index: int, rng: np.random.Generator) -> Sample:
        return replace(shapes.sample(index, rng), caption=shapes.things[index][1])

    return Subset(size, f"classes of {shapes.key}", named, range(len(shapes)))


def shape_classes(source: Dataset) -> tuple[str, ...]:
    """The distinct captions of a source. Raises DaguerreError where there are too many to be classes."""
    captions = {caption for _, caption in source.items} if isinstance(source, FolderDataset) else set(source.captions(4000, 0))
    if len(captions) > MAX_CLASSES:
        raise DaguerreError(
            f"There are {len(captions)} different captions, too many to be classes; put the pictures of each class in a folder of its own, "
            "or take --condition text."
        )
    return tuple(sorted(captions))
