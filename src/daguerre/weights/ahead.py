"""How a run will be done, told from the headers of a model's files before anything is loaded."""

from pathlib import Path

import torch

from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.weights.describe import describe
from daguerre.weights.estimate import Way, free_memory, way
from daguerre.weights.reader import open_tensors

ROOMY = 4  # times a model's own size free: no run is planned ahead then, but told from the loaded model (see `pipelines.sparing`)


def way_ahead(
    path: Path,
    *,
    width: int | None,
    height: int | None,
    count: int,
    conditions: int,
    device: torch.device,
    dtype: torch.dtype,
    low_memory: bool = False,
) -> Way:
    """The plainest way that fits of making so many pictures at once with the model in a file or folder; arguments as for `estimate.way`.

    Args:
        width, height: None is the model's own.

    Raises:
        DaguerreError: no way fits, or the files are not whole.
    """
    file, free = open_tensors(path), free_memory(device)
    size = sum(tensor.numel() for tensor in file.shapes.values()) * dtype.itemsize
    if not low_memory and free > ROOMY * size:
        return Way()
    about = describe(file)
    if about.unet is None or not isinstance(about.autoencoder, AutoencoderKLConfig) or not about.texts:
        return Way()
    return way(
        about.unet,
        about.autoencoder,
        tuple(about.texts.values()),
        width=width or about.size,
        height=height or about.size,
        free=free,
        count=count,
        conditions=conditions,
        dtype=dtype,
        low_memory=low_memory,
    )
