"""Generated images become files and rows of the gallery: the files first, then the rows together with the job's state."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from daguerre.atomic_io import atomic_write
from daguerre.pipelines.images.output import GeneratedImage
from daguerre.pipelines.metadata.write import write_image_with_metadata
from daguerre.server.jobs.job import Job
from daguerre.server.storage.image_records import record_of, without_paths
from daguerre.server.storage.store import Store

MAX_PREVIEW_SIDE = 256


@dataclass(frozen=True)
class SampledBatch:
    """What one run gives: images, the latents (B, Z, h, w) predicted in each step, and the noise level after it.

    The latents of a hires fix have two sizes.
    """

    images: Sequence[GeneratedImage]
    latents: Sequence[Tensor]
    sigmas: Sequence[float]


def save_results(store: Store, job: Job, first: int, batch: SampledBatch) -> Job:
    """Save the images of one batch; returns the job with their ids.

    The ids follow from the job's, so a batch that runs again after a crash writes the same files.

    Args:
        first: the number of the first image among those of the job.

    Raises:
        DaguerreError: a file cannot be written. ApiError: the database cannot.
    """
    records = []
    for number, generated in enumerate(batch.images):
        image_id, provenance = f"{job.id}-{first + number}", without_paths(generated.provenance)
        with atomic_write(store.path("images", image_id)) as file:
            write_image_with_metadata(file, generated.image, ".png", provenance)
        _save_steps(store, image_id, [latent[number] for latent in batch.latents], batch.sigmas)
        record = record_of(image_id, job.id, time.time(), generated.image.size, provenance)
        records.append(replace(record, step_count=len(batch.latents)))
    job = replace(job, images=(*job.images, *(record.id for record in records)))
    store.save_images(job, records)
    return job


def _save_steps(store: Store, image_id: str, latents: Sequence[Tensor], sigmas: Sequence[float]) -> None:
    frames = {f"x0.{number}": latent.contiguous() for number, latent in enumerate(latents)}
    data = save({**frames, "sigmas": torch.tensor(sigmas, dtype=torch.float32)})
    with atomic_write(store.path("steps", image_id)) as file:
        file.write(data)


def preview_uri(image: Image.Image) -> str:
    """A preview as a data URI, with at most 256 pixels a side; a tiny decoder gives more."""
    small = image.copy()
    small.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
    return f"data:image/webp;base64,{base64.b64encode(encode_image(small, 'WEBP', quality=80)).decode()}"


def thumbnail_of(store: Store, image_id: str) -> bytes:
    """The WebP of an image of the gallery with at most 256 pixels a side, made at the first call."""
    path = store.path("thumbnails", image_id)
    if not path.exists():
        with Image.open(store.path("images", image_id)) as image:
            image.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
            data = encode_image(image, "WEBP", quality=85)
        with atomic_write(path) as file:
            file.write(data)
    return path.read_bytes()


def encode_image(image: Image.Image, kind: str, **options: int) -> bytes:
    """The bytes of an image file without metadata."""
    file = BytesIO()
    (image.convert("RGB") if kind == "JPEG" else image).save(file, kind, **options)
    return file.getvalue()
