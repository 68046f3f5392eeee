"""How a run will be done, told from the headers of a model's files before anything is loaded."""

import logging
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.runtime.memory_estimate import Way, free_memory, way
from daguerre.runtime.offload import SequentialOffload, offload_dtype
from daguerre.weights.original.detect import detect
from daguerre.weights.tensors.reader import TensorFile, open_tensors

ROOMY = 4  # times a model's own size free: no run is planned ahead then, but told from the loaded model (see `pipelines.sparing`)
LARGE = 1 << 30  # bytes of a model whose parts take turns on a CPU even where there is room for all

log = logging.getLogger(__name__)


def order_ahead(
    paths: Sequence[Path], *, device: torch.device, dtype: torch.dtype, stay: Container[str] = (), **run: Any
) -> SequentialOffload | None:
    """In which order the parts of a model, and of its refiner, come into memory for one run; None is all at once.

    On a CPU those of a large model always take turns, as a run needs each once: they take less memory and no more time.

    Args:
        paths: of the models, each a file or a folder.
        stay: parts that the run needs again and again, and so keeps where there is room.
        run: the other arguments of `way_ahead`.

    Raises:
        DaguerreError: no way fits, or the files are not whole.
    """
    files = [open_tensors(path) for path in paths]
    sizes = [_size(file, dtype) for file in files]
    try:
        ways = [
            way_ahead(path, device=device, dtype=dtype, beside=sum(sizes) - size, **run) for path, size in zip(paths, sizes, strict=True)
        ]
    except DaguerreError:  # not beside each other
        ways = [way_ahead(path, device=device, dtype=dtype, **run) for path in paths]
    if any(taken.in_order for taken in ways):
        if len(paths) > 1 and not run.get("low_memory"):
            log.warning("one part of both models in memory at a time, because there is no room for them beside each other.")
        return SequentialOffload()
    if device.type == "cpu" and sum(sizes) > LARGE and all(detect(file).texts for file in files):
        return SequentialOffload(stay)
    return None


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
    beside: int = 0,
) -> Way:
    """The plainest way that fits of making so many pictures at once with the model in a file or folder; arguments as for `estimate.way`.

    Args:
        width, height: None is the model's own.
        beside: bytes that other models of the run take.

    Raises:
        DaguerreError: no way fits, or the files are not whole.
    """
    file, free = open_tensors(path), free_memory(device) - beside
    if not low_memory and free > ROOMY * _size(file, dtype):
        return Way()
    about = detect(file)
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
        in_turns=offload_dtype(about.canonical(about.contents.parts["unet"]).values(), device, dtype),
    )


def _size(file: TensorFile, dtype: torch.dtype) -> int:
    """Bytes of all that a file holds, in the dtype that it is computed in."""
    return sum(tensor.numel() for tensor in file.shapes.values()) * dtype.itemsize
