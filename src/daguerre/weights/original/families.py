"""Families of published latent diffusion models, and what shapes do not determine: heads, prediction, noise schedule and latent scale.

A family is recognised by the networks of a file and the shape of its UNet, so fine-tuned models are recognised, too. What the family
does not determine comes from the file's metadata or the caller; otherwise an error asks for it.

Latent diffusion: Rombach et al. 2022, arXiv:2112.10752, tables 12 to 15, and the configuration files published with the models.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.model_task import ModelTask, task_by_channels
from daguerre.models.unet import UNetConfig

STABLE_DIFFUSION_SCHEDULE = ScheduleConfig("scaled_linear", 0.00085, 0.012)


@dataclass(frozen=True)
class Family:
    """prediction: None if members differ. heads: of every attention layer; head_width: instead, the width of each head.
    scaling_factor: of the latents. sample_size: the side of the training images in pixels."""

    name: str
    prediction: Prediction | None = "epsilon"
    schedule: ScheduleConfig = STABLE_DIFFUSION_SCHEDULE
    heads: int | None = None
    head_width: int | None = None
    scaling_factor: float = 0.18215
    sample_size: int = 512


def _ldm_family(name: str, beta_end: float, *, heads: int | None = None, head_width: int | None = None) -> Family:
    schedule = ScheduleConfig("scaled_linear", 0.0015, beta_end)
    return Family(name, schedule=schedule, heads=heads, head_width=head_width, scaling_factor=1.0, sample_size=256)


FAMILIES = {
    family.name: family
    for family in (
        Family("sd1", heads=8),
        Family("sd2", prediction=None, head_width=64),
        Family("sd2-upscaler", "v", ScheduleConfig("scaled_linear", 0.0001, 0.02), heads=8, scaling_factor=0.08333),
        Family("sdxl", head_width=64, scaling_factor=0.13025, sample_size=1024),
        Family("sdxl-refiner", head_width=64, scaling_factor=0.13025, sample_size=1024),
        Family("ddpm", schedule=ScheduleConfig("linear", 0.0001, 0.02), heads=1, sample_size=32),
        Family("ldm-text2img", heads=8, sample_size=256),
        _ldm_family("ldm-text2img-vq", 0.0195, head_width=32),
        _ldm_family("ldm-unconditional", 0.0195, head_width=32),
        _ldm_family("ldm-churches", 0.0155, heads=8),
        _ldm_family("ldm-class", 0.0195, heads=1),
        _ldm_family("ldm-class-f8", 0.0195, head_width=32),
        _ldm_family("ldm-layout", 0.0205, head_width=32),
        _ldm_family("ldm-semantic", 0.0205, heads=8),
        _ldm_family("ldm-super-resolution", 0.0155, head_width=32),
        _ldm_family("ldm-inpainting", 0.0205, heads=8),
    )
}

PREDICTION_ALIASES: dict[str, Prediction] = {"epsilon": "epsilon", "v": "v", "v_prediction": "v", "x0": "x0", "sample": "x0"}
# Training steps (`global_step`) of the published pickled files of Stable Diffusion 2.
SD2_PREDICTION_BY_STEPS: dict[str, Prediction] = {"875000": "epsilon", "140000": "v", "110000": "v"}


def family_of(unet: UNetConfig, kinds: Mapping[str, str]) -> Family:
    """The family of a UNet in a file with these other networks (part → kind of network, see `components.COMPONENT_KINDS`)."""
    if unet.context_width is None:
        name = _family_without_context(unet, kinds.get("condition"))
    elif unet.vector_width:
        refiner = "text_encoder" not in kinds and ("text_encoder_2" in kinds or unet.context_width == 1280)
        name = "sdxl-refiner" if refiner else "sdxl"
    elif unet.classes and unet.linear_projection:
        name = "sd2-upscaler"
    elif unet.linear_projection:
        name = "sd2"
    else:
        name = _family_with_context(unet, kinds)
    return FAMILIES[name]


def _family_without_context(unet: UNetConfig, condition: str | None) -> str:
    if condition == "concat":
        return "ldm-unconditional"
    match unet.in_channels - unet.out_channels:
        case 0:
            return "ldm-churches" if unet.resample == "resblock" else "ldm-unconditional"
        case 4:
            return "ldm-inpainting"
    return "ldm-semantic" if condition == "spatial_rescaler" or not any(unet.depth) else "ldm-super-resolution"


def _family_with_context(unet: UNetConfig, kinds: Mapping[str, str]) -> str:
    """A UNet with cross-attention that is not of SD 2 or SDXL; without a text encoder its context width decides."""
    text, width = kinds.get("text_encoder"), unet.context_width
    if text == "ldm_boxes" or (text is None and width == 512 and max(unet.depth) > 1):
        return "ldm-layout"
    if kinds.get("condition") == "class_embedder" or (text is None and width == 512):
        return "ldm-class" if unet.out_channels == 3 else "ldm-class-f8"
    if text == "ldm_text" or (text is None and width in (640, 1280)):
        return "ldm-text2img-vq" if unet.out_channels == 3 else "ldm-text2img"
    return "sd1"


def task_of(family: Family, unet: UNetConfig) -> ModelTask | None:
    """What a model was trained for; None for a UNet with an unknown number of input channels."""
    if family.name == "ddpm":
        return "text-to-image"
    return "semantic" if family.name == "ldm-semantic" else task_by_channels(unet.in_channels, unet.out_channels)


def heads_of(family: Family, unet: UNetConfig, given: int | tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Heads per level: the given ones (one number for all levels, or one for each), or by the family's rule.

    Raises:
        DaguerreError: the heads do not divide the channels.
    """
    levels = len(unet.channels)
    with_attention = [level for level, depth in enumerate(unet.depth) if depth] + [levels - 1]  # the middle has the last level's heads
    count = family.heads if given is None else given
    heads = count if isinstance(count, tuple) else (count,) * levels if count else None
    if heads is None:
        width = family.head_width or 1
        heads = tuple(max(1, channels // width) for channels in unet.channels)
        fits = all(unet.channels[level] % width == 0 for level in with_attention)
    else:
        fits = len(heads) == levels and all(heads[level] > 0 and unet.channels[level] % heads[level] == 0 for level in with_attention)
    if not fits:
        what = f"The heads {given}" if given is not None else f"The usual heads of {family.name}"
        raise DaguerreError(
            f"{what} do not divide the channels {unet.channels} of this UNet, and its shapes do not determine the number of heads: "
            f"give heads=, one number or {levels} of them."
        )
    return heads


def prediction_of(
    family: Family, unet: UNetConfig, metadata: Mapping[str, str], names: Collection[str] = ()
) -> tuple[Prediction | None, str]:
    """What a model predicts (None if unknown), and the source of that information. names: of the file's tensors, which include markers."""
    for key in ("modelspec.prediction_type", "prediction_type"):
        if metadata.get(key) in PREDICTION_ALIASES:
            return PREDICTION_ALIASES[metadata[key]], f"the file's {key}"
    if "v_pred" in names:
        return "v", "the marker v_pred in the file"
    if family.name == "sd2" and unet.in_channels != 4:
        return "epsilon", "all Stable Diffusion 2 models with more input channels predict it"
    if family.name == "sd2" and metadata.get("global_step") in SD2_PREDICTION_BY_STEPS:
        return SD2_PREDICTION_BY_STEPS[metadata["global_step"]], f"the {metadata['global_step']} steps it was trained for"
    if family.prediction is None:
        return None, "not in the file"
    return family.prediction, f"the family {family.name}"


def unknown_prediction_error(where: object) -> DaguerreError:
    """The error that asks for the prediction type of a Stable Diffusion 2 model."""
    return DaguerreError(
        f"'{where}' is a Stable Diffusion 2 model without a prediction type: give prediction='v' for one trained at 768 pixels, "
        "or prediction='epsilon' for the 512-pixel base; on the command line --prediction-type."
    )
