"""The families of published latent diffusion models, and what shapes cannot tell about them: heads, prediction, noise schedule, scale.

A family is recognised by the networks in a file and by the shape of its UNet, so members nobody has listed belong to one, too. Where
the family's rule has a gap, the file's metadata or its user fill it, and otherwise an error asks.

Latent diffusion: Rombach et al. 2022, arXiv:2112.10752, tables 12 to 15, and the configuration files published with the models.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.model_task import task_by_channels
from daguerre.models.unet import UNetConfig

STABLE_DIFFUSION = ScheduleConfig("scaled_linear", 0.00085, 0.012)


@dataclass(frozen=True)
class Family:
    """prediction: None where members differ. heads: in every attention; head_width: instead, so that wider levels have more heads.
    scaling_factor: of latents. size: of the pictures that it was trained on, in pixels."""

    name: str
    prediction: Prediction | None = "epsilon"
    schedule: ScheduleConfig = STABLE_DIFFUSION
    heads: int | None = None
    head_width: int | None = None
    scaling_factor: float = 0.18215
    size: int = 512


def _latent(name: str, beta_end: float, **rest: int) -> Family:
    return Family(name, schedule=ScheduleConfig("scaled_linear", 0.0015, beta_end), scaling_factor=1.0, size=256, **rest)  # pyright: ignore[reportArgumentType]


FAMILIES = {
    family.name: family
    for family in (
        Family("sd1", heads=8),
        Family("sd2", prediction=None, head_width=64),
        Family("sd2-upscaler", "v", ScheduleConfig("scaled_linear", 0.0001, 0.02), heads=8, scaling_factor=0.08333),
        Family("sdxl", head_width=64, scaling_factor=0.13025, size=1024),
        Family("sdxl-refiner", head_width=64, scaling_factor=0.13025, size=1024),
        Family("ldm-text2img", heads=8, size=256),
        _latent("ldm-text2img-vq", 0.0195, head_width=32),
        _latent("ldm-unconditional", 0.0195, head_width=32),
        _latent("ldm-churches", 0.0155, heads=8),
        _latent("ldm-class", 0.0195, heads=1),
        _latent("ldm-class-f8", 0.0195, head_width=32),
        _latent("ldm-layout", 0.0205, head_width=32),
        _latent("ldm-semantic", 0.0205, heads=8),
        _latent("ldm-super-resolution", 0.0155, head_width=32),
        _latent("ldm-inpainting", 0.0205, heads=8),
    )
}

PREDICTION_ALIASES: dict[str, Prediction] = {"epsilon": "epsilon", "v": "v", "v_prediction": "v", "x0": "x0", "sample": "x0"}
# Steps of training after which the pickled files of Stable Diffusion 2 were published.
SD2_STEPS: dict[str, Prediction] = {"875000": "epsilon", "140000": "v", "110000": "v"}


def family_of(unet: UNetConfig, kinds: Mapping[str, str]) -> Family:
    """The family of a UNet that lies beside these networks (part -> kind of network, see `keys_parts`)."""
    if unet.context_width is None:
        name = _without_context(unet, kinds.get("condition"))
    elif unet.vector_width:
        refiner = "text_encoder" not in kinds and ("text_encoder_2" in kinds or unet.context_width == 1280)
        name = "sdxl-refiner" if refiner else "sdxl"
    elif unet.classes and unet.linear_projection:
        name = "sd2-upscaler"
    elif unet.linear_projection:
        name = "sd2"
    else:
        name = _with_context(unet, kinds)
    return FAMILIES[name]


def _without_context(unet: UNetConfig, condition: str | None) -> str:
    match unet.in_channels - unet.out_channels:
        case 0:
            return "ldm-churches" if unet.resample == "resblock" else "ldm-unconditional"
        case 4:
            return "ldm-inpainting"
    return "ldm-semantic" if condition == "spatial_rescaler" or not any(unet.depth) else "ldm-super-resolution"


def _with_context(unet: UNetConfig, kinds: Mapping[str, str]) -> str:
    """With cross-attention and nothing that is Stable Diffusion 2's or XL's; where the file has only the UNet, its widths tell."""
    text, width = kinds.get("text_encoder"), unet.context_width
    if text == "ldm_boxes" or (text is None and width == 512 and max(unet.depth) > 1):
        return "ldm-layout"
    if kinds.get("condition") == "class_embedder" or (text is None and width == 512):
        return "ldm-class" if unet.out_channels == 3 else "ldm-class-f8"
    if text == "ldm_text" or (text is None and width in (640, 1280)):
        return "ldm-text2img-vq" if unet.out_channels == 3 else "ldm-text2img"
    return "sd1"


def task_of(family: Family, unet: UNetConfig) -> str:
    """What a UNet's input channels are for."""
    if family.name.startswith("ldm"):
        return family.name.removeprefix("ldm-").removesuffix("-vq").removesuffix("-f8")
    return task_by_channels(unet.in_channels, unet.out_channels) or f"{unet.in_channels} input channels"


def heads_of(family: Family, unet: UNetConfig, told: int | tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Heads per level: as told (one number for all levels, or one each), or by the family's rule.

    Raises:
        DaguerreError: they do not divide the channels; asks for the right ones.
    """
    levels = len(unet.channels)
    attended = [level for level, depth in enumerate(unet.depth) if depth] + [levels - 1]  # the middle has the last level's
    count = family.heads if told is None else told
    heads = count if isinstance(count, tuple) else (count,) * levels if count else None
    if heads is None:
        wrong = [width for level in attended if (width := unet.channels[level]) % (family.head_width or 1)]
        heads = tuple(max(1, width // (family.head_width or 1)) for width in unet.channels)
    else:
        wrong = [] if len(heads) == levels else list(unet.channels)
        wrong += [unet.channels[level] for level in attended if not wrong and (heads[level] < 1 or unet.channels[level] % heads[level])]
    if wrong:
        given = f"The heads {told}" if told is not None else f"The usual heads of {family.name}"
        raise DaguerreError(
            f"{given} do not fit the channels {unet.channels} of this UNet, and shapes cannot tell how many it has: "
            f"give heads=, one number or {levels} of them."
        )
    return heads


def prediction_of(
    family: Family, unet: UNetConfig, metadata: Mapping[str, str], names: Collection[str] = ()
) -> tuple[Prediction | None, str]:
    """What a model predicts and how that is known; None where it is not. names: of the file's tensors, some of which are only marks."""
    for key in ("modelspec.prediction_type", "prediction_type"):
        if metadata.get(key) in PREDICTION_ALIASES:
            return PREDICTION_ALIASES[metadata[key]], f"the file's {key}"
    if "v_pred" in names:
        return "v", "the mark v_pred in the file"
    if family.name == "sd2" and unet.in_channels != 4:
        return "epsilon", "all Stable Diffusion 2 models with more input channels predict it"
    if family.name == "sd2" and metadata.get("global_step") in SD2_STEPS:
        return SD2_STEPS[metadata["global_step"]], f"the {metadata['global_step']} steps it was trained for"
    if family.prediction is None:
        return None, "the file does not say"
    return family.prediction, f"the family {family.name}"


def unknown_prediction_error(where: object) -> DaguerreError:
    """The error that asks what a Stable Diffusion 2 model predicts."""
    return DaguerreError(
        f"'{where}' is a Stable Diffusion 2 model and does not say what it predicts: give prediction='v' for one trained at 768 pixels, "
        "or prediction='epsilon' for the 512-pixel base; on the command line --prediction."
    )
