"""The training data of a prior: images and their condition maps, with a held-out part, encoded to codes and conditions."""

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
from daguerre.training.objectives.prior import CodeBatch
from daguerre.training.run_identity import fingerprint
from daguerre.weights.hashing import network_hash

HELD_OUT_EVERY = 10  # every tenth image of a folder is held out for evaluation
MAX_CLASSES = 1000
ENCODE_BATCH = 50  # images encoded in one call


class PriorDataset(NamedTuple):
    """Images, and condition maps at the same indices if the prior is conditioned on them."""

    images: Dataset
    maps: ConditionMaps | None = None

    def limit(self, count: int, crops: int) -> int:
        """`count`, but at most `crops` of each image of a folder."""
        return count if self.images.rendered else min(count, crops * len(self.images))

    def part(self, indices: Sequence[int], name: str) -> "PriorDataset":
        """The samples with these indices."""

        def subset(source: Dataset) -> Subset:
            return Subset(source.size, f"{name} part of {source.key}", source.sample, indices, source.rendered)

        return self._replace(images=subset(self.images), maps=self.maps and ConditionMaps(subset(self.maps.source), self.maps.palette))


class EncodedCodes(NamedTuple):
    """Codes and conditions of N images, and their captions."""

    batch: CodeBatch
    captions: list[str]


@dataclass(frozen=True)
class CodeEncoder:
    """Encodes a dataset once, with a cache in `folder`."""

    first_stage: VQModel
    prefix: Prefixes
    folder: Path
    workers: int = 1

    def __call__(self, dataset: PriorDataset, count: int, seed: int) -> EncodedCodes:
        """The codes of `count` images, chosen by a seed."""
        codes, captions = self._codes(dataset.images, self.first_stage, count, seed)
        maps = None
        if isinstance(self.prefix, MapPrefix) and dataset.maps is not None:
            maps, _ = self._codes(dataset.maps.source, self.prefix.autoencoder, count, seed)
        return EncodedCodes(CodeBatch(codes, conditions(self.prefix, codes, captions, maps)), captions)

    def _codes(self, source: Dataset, network: VQModel, count: int, seed: int) -> tuple[Tensor, list[str]]:
        key = fingerprint(source.key, seed, network_hash(network))
        codes, captions = cache_codes(BatchLoader(source, min(count, ENCODE_BATCH), seed), network, count, self.folder, key, self.workers)
        return codes[:count], captions[:count]


def conditions(prefix: Prefixes, codes: Tensor, captions: Sequence[str], maps: Tensor | None) -> Tensor | None:
    """The condition of each grid of codes (N, h, w): a row (N, P), a grid (N, h', w'), or None. maps: the codes of the condition maps."""
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


def split_held_out(dataset: PriorDataset, held_out: PriorDataset | None = None) -> tuple[PriorDataset, PriorDataset, bool]:
    """The training part, the evaluation part, and whether they are disjoint.

    The evaluation part is `held_out` if there is one. Else every tenth image of a folder is held out, if there are at least 20. Rendered
    datasets need no split: another seed gives new images.
    """
    count = len(dataset.images)
    if held_out is not None:
        return dataset, held_out, True
    if dataset.images.rendered or count < 2 * HELD_OUT_EVERY:
        return dataset, dataset, dataset.images.rendered
    trained = dataset.part([i for i in range(count) if i % HELD_OUT_EVERY], "trained")
    return trained, dataset.part(range(0, count, HELD_OUT_EVERY), "measured"), True


def shapes_by_class(size: int) -> Subset:
    """Rendered shapes, one kind per image, with the name of the shape as caption."""
    shapes = ShapesDataset(size, mix=ShapesMix(pair=0))

    def sample(index: int, rng: np.random.Generator) -> Sample:
        return replace(shapes.sample(index, rng), caption=shapes.things[index][1])

    return Subset(size, f"classes of {shapes.key}", sample, range(len(shapes)))


def class_names(source: Dataset) -> tuple[str, ...]:
    """The distinct captions of a dataset, sorted. Raises DaguerreError if there are more than MAX_CLASSES."""
    captions = {item.caption for item in source.items} if isinstance(source, FolderDataset) else set(source.captions(4000, 0))
    if len(captions) > MAX_CLASSES:
        raise DaguerreError(
            f"There are {len(captions)} different captions, more than the {MAX_CLASSES} classes allowed; use one folder per class, or "
            "--condition text."
        )
    return tuple(sorted(captions))
