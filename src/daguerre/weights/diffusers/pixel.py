"""Diffusion models of pixels in the folder layout of diffusers' `DDPMPipeline` and `DDIMPipeline`, and the labels of their classes.

    model_index.json
    unet/           config.json, diffusion_pytorch_model.safetensors
    scheduler/      scheduler_config.json

The oldest published folders have all of these files at the top. The names of classes have no field in this layout; they are stored in the
index under `_class_labels`, and the image that a latent model is conditioned on under `_condition`, which diffusers ignores.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from daguerre.atomic_io import atomic_path, check_overwrite
from daguerre.conditioning.class_map_image import (
    ConcatConditioner,
    ConcatKind,
    LabelConditioner,
    LayoutConditioner,
    UnconditionalConditioner,
)
from daguerre.diffusion import SAMPLERS, Conditioning, Prediction, SamplerConfig, Schedule, Variance, read_scheduler
from daguerre.errors import DaguerreError
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import CONFIG_FILE, SCHEDULER_CONFIG_FILE
from daguerre.weights.diffusers.index import GUIDANCE_KEY, model_index, stored_guidance
from daguerre.weights.diffusers.load import build, modernize_key, write_part
from daguerre.weights.diffusers.scheduler_config import schedule_config, schedule_json
from daguerre.weights.diffusers.unet_config import unconditional_unet_config, unet_json
from daguerre.weights.original.infer_config import unet_from_shapes
from daguerre.weights.tensors.reader import open_tensors, weights_in
from daguerre.weights.tensors.safetensors import read_json, with_config_errors, write_json

LABELS_KEY, CONDITION_KEY = "_class_labels", "_condition"
VARIANCE_TYPES: Mapping[Variance, str] = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
DDIM = SamplerConfig(SAMPLERS["euler"], {}, "trailing", clip=1.0)  # the default: good in far fewer steps than ancestral sampling


@with_config_errors
def load_pixel_folder(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: Prediction | None = None,
    variant: str | None = None,
) -> LatentDiffusion:
    """Load a model of pixels; it has the name of the folder. It samples with DDIM by default: as its scheduler states, if that is DDIM.

    Raises:
        DaguerreError: a part is missing, is not supported, or does not match its config.
    """
    index = read_json(folder / INDEX)
    unet_folder, where = _part(folder, "unet"), _part(folder, "scheduler") / SCHEDULER_CONFIG_FILE
    scheduler, given = read_json(where), read_json(unet_folder / CONFIG_FILE)
    schedule, stored_prediction = schedule_config(scheduler, where)
    weights = weights_in(unet_folder, variant)
    tensors = {modernize_key(name): t for name, t in open_tensors(weights).to_compute_layout(device, dtype).items()}
    unet = build(UNet, unconditional_unet_config(given, unet_from_shapes(tensors), unet_folder / CONFIG_FILE), unet_folder, tensors)
    settings = read_scheduler(str(scheduler.get("_class_name")), scheduler)
    is_ddpm = settings.sampler.name == "ddpm"
    size = given.get("sample_size") or 32
    return LatentDiffusion(
        unet=unet,
        autoencoder=IdentityAutoencoder().eval(),
        conditioner=plain_conditioner(index),
        schedule=Schedule(schedule),
        prediction=prediction or stored_prediction,
        name=folder.resolve().name,
        sample_size=size if isinstance(size, int) else max(size),
        default_guidance=stored_guidance({GUIDANCE_KEY: 1.0, **index}),
        files=(weights,),
        sampler_config=DDIM if is_ddpm else settings,
        variance=settings.options["variance"] if is_ddpm else "small",
    )


def save_pixel_folder(model: LatentDiffusion, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a model of pixels atomically, replacing an older one, as a `DDPMPipeline` of diffusers.

    That pipeline gives no labels, so of a model with classes diffusers samples through its UNet and scheduler.

    Raises:
        DaguerreError: the layout cannot express a part, or the folder cannot be written; its content is unchanged.
    """
    folder = Path(folder)
    check_overwrite(folder, INDEX)
    config = unet_json(model.unet.config, model.sample_size)
    scheduler = ddpm_scheduler_json(model)
    options = {**conditioner_fields(model.conditioner), GUIDANCE_KEY: model.default_guidance}
    with atomic_path(folder) as temporary:
        write_part(temporary / "unet", config, model.unet.state_dict(), dtype)
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / SCHEDULER_CONFIG_FILE, scheduler)
        classes = {"unet": config["_class_name"], "scheduler": scheduler["_class_name"]}
        write_json(temporary / INDEX, model_index("DDPMPipeline", classes, options))
    return folder


def ddpm_scheduler_json(model: LatentDiffusion) -> Json:
    """The config of a `DDPMScheduler` with the model's schedule, prediction type and variance, and x0 clipped to [−1, 1]."""
    ddim = schedule_json(model.schedule.config, model.prediction)
    return {
        **{name: value for name, value in ddim.items() if name != "set_alpha_to_one"},  # DDPM always ends at x0
        "_class_name": "DDPMScheduler",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "variance_type": VARIANCE_TYPES[model.variance],
    }


def plain_conditioner(index: Mapping[str, Any]) -> LabelConditioner | ConcatConditioner | UnconditionalConditioner:
    """The conditioner without weights that an index describes: for classes, for an image, or without inputs.

    Raises:
        DaguerreError: its fields are not of the expected types.
    """
    if (condition := index.get(CONDITION_KEY)) is not None:
        return _concat_conditioner(condition)
    names = stored_class_names(index)
    return UnconditionalConditioner() if names is None else LabelConditioner(names)


def stored_class_names(index: Mapping[str, Any]) -> list[str] | None:
    """The names of classes in an index; None if it has none. Raises DaguerreError if they are not texts."""
    names = index.get(LABELS_KEY)
    if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
        raise DaguerreError(f"The model's index sets {LABELS_KEY} to {str(names)[:60]!r}; it is a list of class names.")
    return names


def _concat_conditioner(condition: Any) -> ConcatConditioner:
    try:
        palette = [(int(r), int(g), int(b)) for r, g, b in condition["palette"]]
        if condition["kind"] not in get_args(ConcatKind) or int(condition["scale"]) < 1:
            raise ValueError
        return ConcatConditioner(condition["kind"], scale=int(condition["scale"]), palette=palette)
    except (KeyError, TypeError, ValueError):
        raise DaguerreError(
            f"The model's index sets {CONDITION_KEY} to {str(condition)[:60]!r}; it has a kind ({', '.join(get_args(ConcatKind))}), a "
            "scale of 1 or more and a palette of RGB colours."
        ) from None


def conditioner_fields(conditioner: Callable[[Sequence[str]], Conditioning]) -> dict[str, Any]:
    """The fields of an index that describe a conditioner: the names of its classes, or its image; none for others."""
    if isinstance(conditioner, ConcatConditioner):
        palette = [list(colour) for colour in conditioner.palette]
        return {CONDITION_KEY: {"kind": conditioner.kind, "scale": conditioner.scale, "palette": palette}}
    if isinstance(conditioner, LabelConditioner | LayoutConditioner) and conditioner.names:
        return {LABELS_KEY: list(conditioner.names)}
    return {}


def _part(folder: Path, name: str) -> Path:
    """The folder of a part, or the whole folder in the oldest layout."""
    return folder / name if (folder / name).is_dir() else folder
