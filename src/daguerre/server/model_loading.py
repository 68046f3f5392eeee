"""Open a model for a server: in the fastest precision of the device, one network in memory at a time if it would not fit otherwise."""

import torch

from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.memory_plan import plan_offload
from daguerre.runtime.dtype import default_dtype
from daguerre.runtime.engines import engine_by_name
from daguerre.weights.loading import default_device, is_diffusion_model, load_diffusion, resolve_path


def open_for_server(source: str, device: str, engine: str) -> LatentDiffusion:
    """Open a diffusion model, computed by an engine.

    Raises:
        DaguerreError: there is no such model, it is no diffusion model, or it does not fit into the memory.
    """
    path, dtype = resolve_path(source, offline=False), default_dtype(torch.device(device))
    if not is_diffusion_model(path):
        raise DaguerreError(f"The model '{path.name}' is no diffusion model; the server runs diffusion models.")
    offload = plan_offload([path], width=None, height=None, num_images=1, conditions=2, device=torch.device(device), dtype=dtype)
    model = load_diffusion(source, device=device, dtype=dtype, offload=False if offload is None else offload)
    return engine_by_name(engine, model.device)(model)


def serving_devices() -> list[str]:
    """The devices that get a worker: every CUDA device, else the CPU."""
    first = default_device(None)
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if first.type == "cuda" else [str(first)]
