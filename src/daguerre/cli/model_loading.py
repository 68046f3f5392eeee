"""Open the model that a command line names."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daguerre.cli.options import PREDICTIONS_BY_FLAG, dtype_by_name
from daguerre.cli.parsing import UsageError, usage_errors
from daguerre.cpu_threads import check_threads, set_threads, use_free_cores
from daguerre.weights.catalog import find, may_be_on_the_hub

if TYPE_CHECKING:
    import torch

    from daguerre.adapters.record import AdapterRecord
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior
    from daguerre.pipelines import Request
    from daguerre.runtime.offload import SequentialOffload
    from daguerre.weights.loading import DiffusionOptions


def open_model(
    name: str | None,
    vae: str | None,
    device: str | None,
    dtype: str,
    *,
    offline: bool,
    prediction: str = "auto",
    adapters: "Sequence[AdapterRecord]" = (),
) -> "LatentDiffusion":
    """Open a diffusion model, with another autoencoder if one is named.

    Raises:
        DaguerreError: there is no such model, it is not a diffusion model, or the autoencoder does not fit it.
    """
    model = open_any(name, vae, device, dtype, offline=offline, prediction=prediction, adapters=adapters)
    from daguerre.models.latent_diffusion import LatentDiffusion

    if not isinstance(model, LatentDiffusion):
        raise UsageError(f"'{name}' is a prior over codes, not a diffusion model; `daguerre sample --model {name}` samples from it.")
    return model


def open_any(
    name: str | None,
    vae: str | None,
    device: str | None,
    dtype: str,
    *,
    offline: bool,
    prediction: str = "auto",
    refiner: str | None = None,
    request: "Request | None" = None,
    keep_loaded: Sequence[str] = (),
    adapters: "Sequence[AdapterRecord]" = (),
    adapter_folders: Sequence[Path] = (),
    engine: str = "torch",
) -> "LatentDiffusion | LatentPrior":
    """Open a diffusion model or a prior over codes; a diffusion model with its refiner if one is named.

    Args:
        adapters: attached to the model; adapter_folders: where else to search their files.
        request: what the model is opened for; a request that does not fit in memory fails before loading, or uses sequential offload.
        keep_loaded: components that sequential offload keeps in memory, because the request needs them again and again.
        engine: what computes the UNet.

    Raises:
        UsageError: there is no such model, device or engine, or the options do not fit the model.
        DaguerreError: its files are damaged or incomplete, or the request does not fit in memory.
    """
    for source in (name, *filter(None, (vae, refiner))):
        check_model_name(source)  # before importing torch, which takes a second

    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.runtime.dtype import default_dtype
    from daguerre.runtime.engines import Torch, engine_by_name
    from daguerre.weights import load
    from daguerre.weights.loading import default_device

    if request is not None:
        check_sampler(request)
    with usage_errors():
        chosen_device = default_device(device)
        chosen_engine = engine_by_name(engine, chosen_device)
    compute_dtype = default_dtype(chosen_device) if dtype == "auto" else dtype_by_name(dtype)
    offload = None if request is None else _plan_offload(name, refiner, request, keep_loaded, chosen_device, compute_dtype, offline)
    more: DiffusionOptions = {} if offload is None else {"offload": offload}
    options: DiffusionOptions = {**more}
    if (predicted := PREDICTIONS_BY_FLAG[prediction]) is not None:
        options["prediction"] = predicted
    if vae is not None:
        options["vae"] = vae
    model = load(name, device=device, dtype=compute_dtype, offline=offline, **options)
    if not isinstance(model, LatentDiffusion):
        if refiner is not None or adapters or chosen_engine != Torch():
            raise UsageError(f"'{name}' is a prior over codes; remove --refiner, --engine and all adapters.")
        return model
    if refiner is not None:
        model = _with_refiner(model, refiner, device, compute_dtype, offline, more)
    model = chosen_engine(model)
    if not adapters:
        return model
    from daguerre.adapters.load import with_recorded_adapters

    return with_recorded_adapters(model, adapters, adapter_folders)


def _with_refiner(
    model: "LatentDiffusion", refiner: str, device: str | None, dtype: "torch.dtype", offline: bool, more: "DiffusionOptions"
) -> "LatentDiffusion":
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.pipelines.planners.refiner import with_refiner
    from daguerre.weights import load

    second = load(refiner, device=device, dtype=dtype, offline=offline, **more)
    if not isinstance(second, LatentDiffusion):
        raise UsageError(f"'{refiner}' is a prior over codes; --refiner needs a diffusion model.")
    with usage_errors():
        return with_refiner(model, second)


def check_model_name(source: str | None) -> None:
    """Check that a model exists, unless only the hub can tell.

    Raises:
        UsageError: there is no such name or path; names the nearest.
    """
    with usage_errors():
        if not may_be_on_the_hub(source):
            find(source)


def choose_threads(requested: int | None) -> None:
    """Compute with the requested number of threads, else with one for each core that other programs leave free; a note says so.

    Raises:
        UsageError: the number is out of range.
    """
    with usage_errors():
        check_threads(requested)  # before importing torch, which takes a second
    if requested is not None:
        set_threads(requested)
        return

    import torch

    default = torch.get_num_threads()
    if (count := use_free_cores()) < default:
        note = f"{count} of {default} threads compute, because other programs keep cores busy; --threads sets the number."
        print(f"daguerre: {note}", file=sys.stderr)


def check_sampler(request: "Request") -> None:
    """Check the names of sampler and spacing before a model is loaded.

    Raises:
        UsageError: there is no such sampler or spacing; names the nearest.
    """
    from daguerre.diffusion.sampler_names import parse_sampler_name, parse_spacing_name

    with usage_errors():
        if request.sampler is not None:
            parse_sampler_name(request.sampler)
        if request.spacing is not None:
            parse_spacing_name(request.spacing)


def _plan_offload(
    name: str | None,
    refiner: str | None,
    request: "Request",
    keep_loaded: Sequence[str],
    device: "torch.device",
    dtype: "torch.dtype",
    offline: bool,
) -> "SequentialOffload | None":
    """How a model and its refiner are offloaded for a request; None loads everything at once.

    Raises:
        DaguerreError: the request does not fit in memory.
    """
    from daguerre.pipelines.memory_plan import plan_offload
    from daguerre.weights.loading import is_diffusion_model, resolve_path

    paths = [resolve_path(each, offline) for each in ([name, refiner] if refiner else [name])]
    if not all(map(is_diffusion_model, paths)):
        return None
    return plan_offload(
        paths,
        width=request.width,
        height=request.height,
        num_images=len(request.items),
        conditions=1 if request.guidance_scale == 1 else 2,
        device=device,
        dtype=dtype,
        low_memory=request.low_memory,
        keep_loaded=keep_loaded,
    )
