"""What recipes share that fine-tune a latent diffusion model on a directory of images: the images, and the batches of their latents."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daguerre.data import Batch, BatchLoader, FolderDataset
from daguerre.data.shards.fetch import FetchError
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.unet import UNetConfig
from daguerre.training.config import LoopConfig
from daguerre.training.datasets.images import TrainingImages, open_training_images, validation_batches, validation_sample
from daguerre.training.datasets.latents import CachedLatents, FolderEncoder, one_size_batches
from daguerre.training.distributed.processes import rank
from daguerre.training.loop import BatchStream
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.options.images import TrainingImageOptions


@dataclass(frozen=True)
class ClassPrior:
    """Images that the model generated of a class, which training must preserve, and the weight λ of their loss."""

    images: FolderDataset
    weight: float

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able, for the identity of a run."""
        return {"data": self.images.key, "weight": self.weight}


@dataclass(frozen=True)
class PriorBatch:
    """Images of something new, and as many of the class."""

    instance: Batch
    prior: Batch

    def __len__(self) -> int:
        return len(self.instance)

    def __getitem__(self, part: slice) -> "PriorBatch":
        return PriorBatch(self.instance[part], self.prior[part])


@dataclass(frozen=True)
class PriorBatches:
    """Two streams, whose batches have the same number of images, as one."""

    instance: BatchStream
    prior: BatchStream

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[PriorBatch]:
        """The batches of steps start, start + 1, …"""
        streams = (each.stream(start, workers, processes=processes) for each in (self.instance, self.prior))
        return (PriorBatch(*pair) for pair in zip(*streams, strict=True))


def open_captioned_images(
    data: str | Path,
    size: int,
    options: TrainingImageOptions,
    autoencoder: AutoencoderKL,
    unet: UNetConfig,
    name: str,
    *,
    captioned: bool = True,
) -> TrainingImages:
    """The images of a directory, which must have captions if `captioned`, in sizes that a model's autoencoder and UNet can process.

    name: of the model, for errors.

    Raises:
        DaguerreError: there are no images, one is bad or has no caption, or `size` does not suit the model.
    """
    require_multiple(size, autoencoder.downsample_factor, name)
    step = math.lcm(autoencoder.downsample_factor * 2 ** (len(unet.channels) - 1), max(1, size // 8))
    return open_training_images(str(data), size, options, captioned=captioned, repeats=True, bucket_step=step)


def latent_batches(
    images: TrainingImages,
    autoencoder: AutoencoderKL,
    out: Path,
    loop: LoopConfig,
    crops: int | None,
    prior: ClassPrior | None = None,
) -> tuple[BatchStream, Iterable[Batch]]:
    """The batches of a training and of its validation images.

    Args:
        crops: of each image, encoded once and cached in `out/cache`; None gives images instead, with new crops in each step.
        prior: images of a class, with which each batch becomes a `PriorBatch`.
    """
    if prior is not None:
        batches, validation = latent_batches(images, autoencoder, out, loop, crops)
        return PriorBatches(batches, latent_batches(TrainingImages(prior.images), autoencoder, out, loop, crops)[0]), validation
    source, held_out = images
    assert isinstance(source, FolderDataset)
    if crops is None:
        return BatchLoader(source, loop.batch_size, loop.seed, buckets=source.buckets), validation_batches(
            images, loop.batch_size, loop.seed
        )
    encode = FolderEncoder(autoencoder, out / "cache", loop)
    latents, captions = encode(source, crops)
    validation = [] if held_out is None else one_size_batches(*encode(validation_sample(held_out), 1), loop.batch_size)
    return CachedLatents(latents, captions, loop.batch_size, loop.seed), validation


def preview_captions(source: FolderDataset, prior: ClassPrior | None) -> list[str]:
    """Captions for eight sample images while training: of the training images, and of the class if there is one."""
    return source.captions(8, seed=0) if prior is None else source.captions(4, seed=0) + prior.images.captions(4, seed=0)


def example_captions(source: FolderDataset) -> list[str]:
    """Captions for the command that is printed at the end: in the first process only, and none if they cannot be fetched any more."""
    with suppress(FetchError):
        return source.captions(8, seed=0) if rank() == 0 else []
    return []
