"""Latents and codes that are encoded once and read many times, so that a training step runs only the trained network.

`cache_latents` and `cache_codes` encode samples in the order of (seed, step) and keep them, with their captions, in files: see `encoded`.
`CachedLatents`, or a prior's `CodeBatches`, then give batches that depend only on (seed, step).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from daguerre.data import Batch, BatchLoader, FolderDataset
from daguerre.data.loader import prefetch
from daguerre.data.order import BatchOrder
from daguerre.diffusion import Conditioning
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.vq_model import VQModel
from daguerre.training.config import LoopConfig
from daguerre.training.datasets.encoded import EncodedSamples, encode_once
from daguerre.training.run_identity import fingerprint
from daguerre.weights.hashing import network_hash

MAX_CAPTION_BYTES = 1 << 30


class CachedLatents:
    """Batches of scaled latents (B, Z, h, w) with captions, shuffled in each epoch; all latents of a batch have one size."""

    def __init__(
        self,
        latents: Tensor | EncodedSamples | Sequence[Tensor],
        captions: list[str],
        batch_size: int,
        seed: int,
        coverage: Tensor | None = None,
        condition: Conditioning | None = None,
    ):
        """latents: (N, Z, h, w), or N of any sizes (Z, h, w). coverage, condition: of each sample, as in `Batch`."""
        self.latents, self.captions, self.coverage, self.condition = latents, captions, coverage, condition
        shapes = [] if isinstance(latents, Tensor | EncodedSamples) else [tuple(z.shape) for z in latents]
        numbers = {shape: number for number, shape in enumerate(sorted(set(shapes)))}
        self.order = BatchOrder(len(captions), batch_size, seed, [numbers[shape] for shape in shapes])

    def batch(self, step: int) -> Batch:
        """The batch of one step; a batch may span two epochs."""
        chosen = [index for _, index in self.order.batch(step)]
        coverage = None if self.coverage is None else self.coverage[chosen]
        latents = self.latents[chosen] if isinstance(self.latents, Tensor) else torch.stack([self.latents[index] for index in chosen])
        condition = None if self.condition is None else Conditioning.cat([self.condition[index : index + 1] for index in chosen])
        return Batch(latents, [self.captions[index] for index in chosen], latent=True, coverage=coverage, condition=condition)

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Batch]:
        """The batches of steps start, start + 1, …; they are in memory, so one thread is fast enough for any network."""
        return prefetch(self.batch, start, workers=1, ahead=2)


def cache_latents(
    batches: BatchLoader,
    autoencoder: AutoencoderKL | VQModel,
    count: int,
    folder: Path,
    key: str,
    workers: int = 1,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> tuple[EncodedSamples, list[str]]:
    """Encode the first `count` samples of `batches`, or load them from `folder` if they were encoded under the same `key`.

    Returns the means as scaled latents (N, Z, h, w) in float16, and the captions; N is `count` rounded up to whole batches. `key`
    identifies everything that the latents depend on: data, seed, weights. Several processes share the work. `encode` computes something
    else from the images, such as the latents with a condition.
    """
    encode = encode or autoencoder.encode
    return encode_once(batches, lambda x: encode(x).half(), next(autoencoder.parameters()).device, count, folder / key, workers)


def cache_codes(
    batches: BatchLoader, first_stage: VQModel, count: int, folder: Path, key: str, workers: int = 1
) -> tuple[Tensor, list[str]]:
    """The codes (N, h, w) of the first `count` samples of `batches`, in the smallest integer type that fits, and the captions.

    Otherwise like `cache_latents`. A sample depends only on (seed, position), so the caches of two datasets with one seed are aligned: the
    codes of a condition map belong to the codes of the image at the same index.
    """
    small = torch.int16 if first_stage.config.quantizer.codes <= 1 << 15 else torch.int32
    device, stem = next(first_stage.parameters()).device, folder / f"codes-{key}"
    codes, captions = encode_once(batches, lambda x: first_stage.encode_codes(x).to(small), device, count, stem, workers)
    return codes.joined(), captions


@dataclass(frozen=True)
class FolderEncoder:
    """Encodes the images of a folder once, with a cache in `folder`.

    The cache is found by a hash of everything that the latents depend on: images, sizes, crops, mirroring, seed, and the autoencoder's
    weights.
    """

    autoencoder: AutoencoderKL
    folder: Path
    loop: LoopConfig

    @cached_property
    def _weights(self) -> str:
        return network_hash(self.autoencoder)

    def __call__(self, source: FolderDataset, crops: int) -> tuple[list[Tensor], list[str]]:
        """`crops` samples of each image as scaled latents (Z, h, w) in float16, sorted by size, and their captions."""
        latents, captions = [], []
        for part in source.parts_of_one_size():
            count, key = crops * len(part), fingerprint(part.key, self.loop.seed, self._weights)
            batches = BatchLoader(part, min(count, self.loop.batch_size), self.loop.seed)
            encoded, texts = cache_latents(batches, self.autoencoder, count, self.folder, key, self.loop.workers)
            latents += encoded.first(count)
            captions += texts[:count]
        return latents, captions


def one_size_batches(
    latents: Sequence[Tensor], captions: Sequence[str], batch_size: int, condition: Conditioning | None = None
) -> list[Batch]:
    """All latents (Z, h, w) in batches of at most `batch_size`, each of one size; latents of one size must follow each other."""
    found = []
    for _, group in groupby(range(len(latents)), lambda index: latents[index].shape):
        indices = list(group)
        for first in range(0, len(indices), batch_size):
            chosen = indices[first : first + batch_size]
            given = None if condition is None else condition[chosen[0] : chosen[-1] + 1]
            found.append(Batch(torch.stack([latents[i] for i in chosen]), [captions[i] for i in chosen], latent=True, condition=given))
    return found


class CachedCaptions:
    """Conditions of captions, each encoded once: for image folders, whose captions repeat every epoch.

    `MAX_CAPTION_BYTES` of them are kept in the memory of the model's device; further ones are encoded in each step.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Conditioning]):
        self._encode = encode
        self._cache: dict[str, Conditioning] = {}
        self._bytes = 0

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditions of a batch of captions, in order."""
        found: dict[str, Conditioning] = {}
        for caption in dict.fromkeys(captions):
            if caption in self._cache:
                found[caption] = self._cache[caption]
                continue
            found[caption] = condition = self._encode([caption])
            if self._bytes + condition.nbytes <= MAX_CAPTION_BYTES:
                self._cache[caption] = condition
                self._bytes += condition.nbytes
        return Conditioning.cat([found[caption] for caption in captions])
