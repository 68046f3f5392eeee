"""The model that a command line names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from daguerre.cli.options import PREDICTIONS_BY_FLAG, dtype_by_name
from daguerre.errors import DaguerreError
from daguerre.weights.catalog import find, may_be_on_the_hub

if TYPE_CHECKING:
    import torch

    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior
    from daguerre.pipelines import Request
    from daguerre.runtime.offload import SequentialOffload


def open_model(
    name: str | None, vae: str | None, device: str | None, dtype: str, *, offline: bool, prediction: str = "auto"
) -> "LatentDiffusion":
    """The diffusion model of the command line's options, with another autoencoder where one is named.

    Raises:
        DaguerreError: there is no such model, or the autoencoder's latents are not the model's.
    """
    model = open_any(name, vae, device, dtype, offline=offline, prediction=prediction)
    from daguerre.models.latent_diffusion import LatentDiffusion

    if not isinstance(model, LatentDiffusion):
        raise DaguerreError(f"'{name}' is a prior over codes, where a diffusion model is needed; `daguerre sample {name}` draws from it.")
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
    stay: Sequence[str] = (),
) -> "LatentDiffusion | LatentPrior":
    """As `open_model`, and priors over codes, too; a diffusion model with its refiner where one is named.

    request: what it is opened for; what would not fit is refused at once, and the parts take turns in memory where that is better.
    stay: the parts that had better not, as the request needs them again and again.
    """
    if not may_be_on_the_hub(name):
        find(name)  # before torch is imported, which takes a second that a wrong name need not cost

    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.runtime.dtype import default_dtype
    from daguerre.weights import load
    from daguerre.weights.loading import default_device

    told = PREDICTIONS_BY_FLAG[prediction]
    computed = default_dtype(default_device(device)) if dtype == "auto" else dtype_by_name(dtype)
    order = None if request is None else _order(name, refiner, request, stay, default_device(device), computed, offline)
    more = {} if order is None else {"offload": order}
    model = load(name, device=device, dtype=computed, offline=offline, prediction=told, **more)
    if vae is None and refiner is None:
        return model
    if not isinstance(model, LatentDiffusion):
        raise DaguerreError(f"'{name}' is a prior over the codes of its own first stage; leave out --vae and --refiner.")
    model = model if vae is None else _with_autoencoder(model, vae, offline)
    if refiner is None:
        return model
    from daguerre.pipelines.planners.refiner import with_refiner

    finisher = load(refiner, device=device, dtype=computed, offline=offline, **more)
    if not isinstance(finisher, LatentDiffusion):
        raise DaguerreError(f"'{refiner}' is a prior over codes, where a diffusion model is needed to refine.")
    return with_refiner(model, finisher)


def _order(
    name: str | None,
    refiner: str | None,
    request: "Request",
    stay: Sequence[str],
    device: "torch.device",
    dtype: "torch.dtype",
    offline: bool,
) -> "SequentialOffload | None":
    """In which order the parts of a model and its refiner come into memory for a request; None is all at once.

    Raises:
        DaguerreError: the request would not fit.
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
        keep_loaded=stay,
    )


def _with_autoencoder(model: "LatentDiffusion", vae: str, offline: bool) -> "LatentDiffusion":
    from daguerre.models.autoencoder_kl import AutoencoderKL
    from daguerre.weights import load_vae
    from daguerre.weights.loading import vae_files

    own = model.autoencoder
    scale = own.config.scaling_factor if isinstance(own, AutoencoderKL) else 1.0  # of the latents that this model makes
    autoencoder = load_vae(vae, device=model.device, dtype=model.dtype, offline=offline, scaling_factor=scale)
    channels, wanted = autoencoder.config.latent_channels, model.unet.config.out_channels
    if channels != wanted:
        raise DaguerreError(f"The autoencoder '{vae}' has {channels} latent channels and the model {model.name!r} makes {wanted}.")
    name = f"{model.name} + {Path(vae).stem}"  # which no model has, so that none is taken for it by mistake
    return replace(model, autoencoder=autoencoder, name=name, files=(*model.files, *vae_files(vae, offline=offline)))
