"""Fitting a run into memory: one prompt condition at a time, tiled decoding, sequential offload.

Before loading, `plan_offload` and `plan_from_header` decide from file headers. After loading, `with_memory_plan` decides
from the estimate of `runtime.memory_estimate`; weights are in memory by then, so it counts only what the run adds.
"""

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.images.preprocess import ImageSize
from daguerre.pipelines.request import Request
from daguerre.runtime.memory_estimate import MemoryPlan, choose_memory_plan, free_memory
from daguerre.runtime.offload import SequentialOffload, offload_dtype
from daguerre.weights.original.detect import detect
from daguerre.weights.tensors.reader import TensorFile, open_tensors

AMPLE_FACTOR = 4  # times the model's own size: with this much memory free, nothing is planned before loading
LARGE_MODEL = 1 << 30  # bytes from which a CPU always loads one part at a time
Network = Callable[[Tensor, Tensor, Conditioning], Tensor]

log = logging.getLogger(__name__)


def with_memory_plan(model: LatentDiffusion, request: Request, size: ImageSize) -> Request:
    """The request, with `low_memory` set if images of `size` (width, height) would not fit otherwise.

    Raises:
        DaguerreError: they do not fit in any case; states what is needed and what is free.
    """
    plan = memory_plan_of(model, request, size)
    if plan.message:
        log.warning(plan.message)
    return replace(request, low_memory=True) if plan.tiled or plan.guidance_one_at_a_time else request


def memory_plan_of(model: LatentDiffusion, request: Request, size: ImageSize) -> MemoryPlan:
    """How a run with images of `size` (width, height) saves memory; the peak is 0 for a model without a KL autoencoder.

    Raises:
        DaguerreError: they do not fit in any case; states what is needed and what is free.
    """
    if not isinstance(model.autoencoder, AutoencoderKL):
        return MemoryPlan()
    return choose_memory_plan(
        model.unet.config,
        model.autoencoder.config,
        width=size[0],
        height=size[1],
        free=free_memory(model.device),
        num_images=len(request.items),
        conditions=1 if request.guidance_scale == 1 and not request.cfg_plus_plus else 2,
        dtype=model.dtype,
        loaded=0 if model.unet_offload_dtype else sum(_loaded_bytes(part) for part in (model.unet, model.autoencoder)),
        low_memory=request.low_memory,
        offload=model.unet_offload_dtype is not None,
        unet_offload_dtype=model.unet_offload_dtype,
    )


def one_at_a_time(network: Network) -> Network:
    """A network that processes a batch one row at a time."""

    def run_rows(x: Tensor, t: Tensor, cond: Conditioning, control: Sequence[Tensor] | None = None) -> Tensor:
        cond, results = cond.expand(len(x)), []
        for i in range(len(x)):
            row = slice(i, i + 1)
            more = {} if control is None else {"control": [residual[row] for residual in control]}
            results.append(network(x[row], t[row], cond[row], **more))
        return torch.cat(results)

    return run_rows


def plan_offload(
    paths: Sequence[Path], *, device: torch.device, dtype: torch.dtype, keep_loaded: Container[str] = (), **run: Any
) -> SequentialOffload | None:
    """Whether the parts of a model and its refiner are loaded one at a time for a run; None loads everything at once.

    On a CPU, large models always use sequential offload: a run needs each part once, so it takes less memory and no more time.

    Args:
        paths: the models, each a file or a folder.
        keep_loaded: parts that the run uses again and again; they stay loaded if there is room.
        run: the other arguments of `plan_from_header`.

    Raises:
        DaguerreError: the run does not fit in any case, or a file is incomplete.
    """
    files = [open_tensors(path) for path in paths]
    sizes = [_model_bytes(file, dtype) for file in files]
    try:
        plans = [
            plan_from_header(path, device=device, dtype=dtype, other_models=sum(sizes) - size, **run)
            for path, size in zip(paths, sizes, strict=True)
        ]
    except DaguerreError:  # they do not fit together
        plans = [plan_from_header(path, device=device, dtype=dtype, **run) for path in paths]
    if any(plan.offload for plan in plans):
        if len(paths) > 1 and not run.get("low_memory"):
            log.warning("The parts of both models are loaded one at a time, because they do not fit into memory together.")
        return SequentialOffload()
    if device.type == "cpu" and sum(sizes) > LARGE_MODEL and all(detect(file).text_encoders for file in files):
        return SequentialOffload(keep_loaded)
    return None


def plan_from_header(
    path: Path,
    *,
    width: int | None,
    height: int | None,
    num_images: int,
    conditions: int,
    device: torch.device,
    dtype: torch.dtype,
    low_memory: bool = False,
    other_models: int = 0,
) -> MemoryPlan:
    """The simplest memory plan that fits for generating so many images at once; arguments as in `choose_memory_plan`.

    Args:
        width, height: in pixels; None is the model's own size.
        other_models: bytes taken by other models of the run.

    Raises:
        DaguerreError: no plan fits, or a file is incomplete.
    """
    file, free = open_tensors(path), free_memory(device) - other_models
    if not low_memory and free > AMPLE_FACTOR * _model_bytes(file, dtype):
        return MemoryPlan()
    about = detect(file)
    if about.unet is None or not isinstance(about.autoencoder, AutoencoderKLConfig) or not about.text_encoders:
        return MemoryPlan()
    return choose_memory_plan(
        about.unet,
        about.autoencoder,
        tuple(about.text_encoders.values()),
        width=width or about.sample_size,
        height=height or about.sample_size,
        free=free,
        num_images=num_images,
        conditions=conditions,
        dtype=dtype,
        low_memory=low_memory,
        unet_offload_dtype=offload_dtype(about.canonical(about.contents.parts["unet"]).values(), device, dtype),
    )


def _loaded_bytes(network: nn.Module) -> int:
    """Bytes of the weights that are in memory."""
    return sum(weight.nbytes for weight in network.parameters() if not weight.is_meta)


def _model_bytes(file: TensorFile, dtype: torch.dtype) -> int:
    """Bytes of all tensors of a file in the dtype of the computation."""
    return sum(tensor.numel() for tensor in file.shapes.values()) * dtype.itemsize
