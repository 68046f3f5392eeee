"""Detect the model in a checkpoint from its header: networks and their configs, family, prediction type, and names that do not fit.

`components` finds the networks, `infer_config` derives their configs from shapes, and `families` adds what shapes do not determine. A
file that Daguerre wrote, like a folder, also stores the configs themselves.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from shlex import quote

import torch
from torch import Tensor, nn

from daguerre.conditioning.class_map_image import ClassConditioner
from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import Schedule, ScheduleConfig, beta_table
from daguerre.errors import DaguerreError, join_names
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.model_task import CONCAT_TASKS, ModelTask
from daguerre.models.patch_discriminator import PatchDiscriminator
from daguerre.models.spatial_rescaler import SpatialRescaler
from daguerre.models.transformer_prior import TransformerPrior
from daguerre.models.unet import UNet, UNetConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.nn.meta import shapes_only
from daguerre.weights.diffusers.clip_config import clip_text_config
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import PIXEL_PIPELINES
from daguerre.weights.diffusers.index import IMAGE_VARIATION_PIPELINE
from daguerre.weights.diffusers.pixel import CONDITION_KEY
from daguerre.weights.diffusers.scheduler_config import schedule_config
from daguerre.weights.diffusers.unet_config import unconditional_unet_config, unet_config
from daguerre.weights.diffusers.vae_config import autoencoder_config, vq_config
from daguerre.weights.original.components import CheckpointContents, Component, split_components
from daguerre.weights.original.families import FAMILIES, STABLE_DIFFUSION_SCHEDULE, Family, family_of, heads_of, prediction_of, task_of
from daguerre.weights.original.infer_config import (
    clip_from_shapes,
    discriminator_from_shapes,
    first_stage_from_shapes,
    ldm_text_from_shapes,
    prior_from_shapes,
    rescaler_from_shapes,
    unet_from_shapes,
)
from daguerre.weights.tensors.reader import CONFIGS, TensorFile
from daguerre.weights.tensors.safetensors import config_errors

BERT_VOCAB_SIZE = 30522
IMAGE_VARIATION_FILE = "a single file of image variations; these open as a folder of the StableDiffusionImageVariationPipeline"
UNCLIP = "a model of Stable Diffusion unCLIP, which is not supported; image variations of Stable Diffusion 1 are, as a folder"
EDM = "which has a noise schedule of EDM that is not supported; use a model with the usual noise schedule of SDXL"
PLAIN_WEIGHTS = "which is not supported; use a file of the same model with plain weights, such as float16"
# Models that are not supported, by a tensor name that only they have; the first match counts.
UNSUPPORTED = {
    r"noise_augmentor\.|embedder\.model\.visual\.": UNCLIP,
    r"cond_stage_model\.(model\.visual|transformer\.vision_model)\.": IMAGE_VARIATION_FILE,
    r"edm_vpred\.": f"CosXL, {EDM}",
    r"edm_(mean|std)$": f"Playground 2.5, {EDM}",
    r"(.+\.)?double_blocks\.\d+\.img_|(.+[./])?single_transformer_blocks\.": "Flux or one of its relatives, which are not supported",
    r"(.+\.)?joint_blocks\.|(.+[./])?transformer_blocks\.\d+\.attn\.add_q_proj\.": "Stable Diffusion 3, which is not supported",
    r"(.+[./])?(adaln_single|t_embedder)\.": "a diffusion transformer, which is not supported",
    r"(.+\.)?(clip_txt|effnet)_mapper\.": "Stable Cascade, which is not supported",
    r"(.+\.)?(time_stack|temporal_transformer(_blocks)?|motion_modules)\.": "a video model, which is not supported",
    r"(.+[./])?time_embed(ding)?\.cond_proj\.": "a latent consistency model, which is not supported; use its base model",
    r"(.+[./])?block\.0\.layer\.0\.SelfAttention\.q\.": "a T5 text encoder, which is not supported",
    r"scaled_fp8$|.+\.(scale_weight|weight_scale)$": f"a file of scaled float8 weights, {PLAIN_WEIGHTS}",
    r".+\.weight\.(absmax|quant_map|quant_state.*)$|.+\.q(weight|zeros)$": f"a file of quantized weights, {PLAIN_WEIGHTS}",
}
# Files that modify a model, by a tensor name that only such a file has.
ATTACHMENTS = {
    "controlnet": re.compile(r"control_model\.|zero_convs\.|controlnet_cond_embedding\.|controlnet_down_blocks\."),
    "lora": re.compile(r"lora_|.*\.lora_|.*[._]lora\.(up|down)|.*\.(hada|lokr)_"),
    "t2i-adapter": re.compile(r"(adapter\.)?body\.\d+\.(resnets\.|body\.|block1\.|in_conv\.)|style_embedding$"),
    "ip-adapter": re.compile(r"(image_proj|ip_adapter)\."),
    "textual-inversion": re.compile(r"string_to_param\.|emb_params$|clip_[lg]$"),
}


def unsupported_kind(file: TensorFile) -> str | None:
    """The kind of a model that is not supported, as a noun phrase; None for any other file."""
    for pattern, kind in UNSUPPORTED.items():
        if any(map(re.compile(pattern).match, file.shapes)):
            return kind
    index = read_stored_configs(file.metadata).get("model_index")
    return None if index is None or "unet" in index else f"a {index.get('_class_name')}, which is not supported"


def attachment_kind(names: Iterable[str]) -> str | None:
    """The kind of a file that modifies a model, by its tensor names; None for any other file."""
    names = list(names)
    return next((kind for kind, pattern in ATTACHMENTS.items() if any(map(pattern.match, names))), None)


@dataclass(frozen=True)
class DetectedModel:
    """The networks of a file and their configs. `prediction` is None if unknown; `prediction_from` is the source of that information."""

    file: TensorFile
    contents: CheckpointContents
    family: Family | None = None
    unet: UNetConfig | None = None
    autoencoder: AutoencoderKLConfig | VQModelConfig | None = None
    text_encoders: Mapping[str, CLIPTextConfig] = field(default_factory=dict)
    schedule: ScheduleConfig = STABLE_DIFFUSION_SCHEDULE
    prediction: Prediction | None = None
    prediction_from: str = ""

    @cached_property
    def stored_configs(self) -> Mapping[str, Json]:
        """The configs that the file stores, by part; "model_index" is that of a whole folder."""
        return read_stored_configs(self.file.metadata)

    @property
    def sample_size(self) -> int:
        """The side of the training images in pixels."""
        if (side := self.stored_configs.get("unet", {}).get("sample_size")) and self.autoencoder is not None:
            return (side if isinstance(side, int) else max(side)) * 2 ** (len(self.autoencoder.channels) - 1)
        if self.family is None:
            return 512
        return 768 if self.family.name == "sd2" and self.prediction == "v" else self.family.sample_size

    @property
    def task(self) -> ModelTask | None:
        """What the model was trained for; None if there is no complete UNet, or its number of input channels is unknown."""
        index = self.stored_configs.get("model_index", {})
        if isinstance(condition := index.get(CONDITION_KEY), dict):
            return CONCAT_TASKS.get(str(condition.get("kind")))
        if index.get("_class_name") == IMAGE_VARIATION_PIPELINE:
            return "image-variation"
        if self.family is None or self.unet is None:
            return None
        return "layout" if self.family.name == "ldm-layout" else task_of(self.family, self.unet)

    def canonical(self, part: Component) -> dict[str, Tensor]:
        """The tensors of a part under canonical names."""
        return part.canonical(self.unet.heads if self.unet and part.name == "unet" else None)

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by part, on the meta device. Parts whose network is not implemented here are missing."""
        with config_errors(self.file.path):
            found = {name: self._network(part.kind.network, self.canonical(part), name) for name, part in self.contents.parts.items()}
        return {name: network for name, network in found.items() if network is not None}

    def _network(self, kind: str, tensors: Mapping[str, Tensor], part: str) -> nn.Module | None:
        with shapes_only():
            match kind:
                case "unet":
                    return UNet(self.unet or unet_from_shapes(tensors))
                case "autoencoder":
                    # A second autoencoder, which encodes a condition, has no stored config.
                    config = self.autoencoder if part == "vae" and self.autoencoder else first_stage_from_shapes(tensors, 1.0)
                    return VQModel(config) if isinstance(config, VQModelConfig) else AutoencoderKL(config)
                case "clip_text" | "open_clip_text":
                    return CLIPText(self.text_encoders[part])
                case "ldm_text":
                    return LDMBert(ldm_text_from_shapes(tensors))
                case "gpt":
                    return TransformerPrior(prior_from_shapes(tensors))
                case "class_embedder":
                    classes, width = tensors["embedding.weight"].shape
                    return ClassConditioner(nn.Embedding(classes, width))
                case "spatial_rescaler":
                    stages = len(self.autoencoder.channels) - 1 if self.autoencoder else 2
                    return SpatialRescaler(rescaler_from_shapes(tensors, stages))
                case "patch_discriminator":
                    return PatchDiscriminator(discriminator_from_shapes(tensors))
        return None

    def unknown_names(self) -> list[str]:
        """The file's names that no network has."""
        unknown = list(self.contents.unmatched)
        for name, network in self.networks.items():
            part, wanted = self.contents.parts[name], network.state_dict().keys()
            table = part.table(self.unet.heads if self.unet and name == "unet" else None)
            unknown += [
                part.prefix + key for key, shape in part.original.items() if table.to_canonical({key: shape})[0].keys().isdisjoint(wanted)
            ]
        return unknown

    def key_errors(self) -> dict[str, list[str]]:
        """The names that do not fit the networks, as "missing", "unmatched" and "of another shape"."""
        errors: dict[str, list[str]] = {"missing": [], "unmatched": list(self.contents.unmatched), "of another shape": []}
        for name, network in self.networks.items():
            wanted, given = network.state_dict(), self.canonical(self.contents.parts[name])
            errors["missing"] += [f"{name}/{key}" for key in sorted(wanted.keys() - given.keys())]
            errors["unmatched"] += [f"{name}/{key}" for key in sorted(given.keys() - wanted.keys())]
            errors["of another shape"] += [
                f"{name}/{key} is {list(given[key].shape)}, expected {list(tensor.shape)}"
                for key, tensor in wanted.items()
                if key in given and given[key].shape != tensor.shape
            ]
        return errors

    def check_keys(self) -> None:
        """Raise DaguerreError with every name that does not fit the networks."""
        if errors := {kind: names for kind, names in self.key_errors().items() if names}:
            lists = "; ".join(f"{len(names)} {kind} ({join_names(names)})" for kind, names in errors.items())
            model = f"{self.family.name} model" if self.family else "networks"
            advice = ""
            if errors.keys() == {"unmatched"} and self.networks:
                advice = f" `daguerre convert {quote(str(self.file.path))} NEW.safetensors --drop-unknown` leaves these names out."
            raise DaguerreError(f"'{self.file.path}' does not fit the {model} that it seems to hold: {lists}.{advice}")


def detect(
    file: TensorFile, *, prediction: Prediction | None = None, heads: int | tuple[int, ...] | None = None, ema: bool | None = None
) -> DetectedModel:
    """Detect the model in a file from its header. The arguments override what the file contains; see `load_single_file`.

    Raises:
        DaguerreError: an architecture cannot be determined, or the kind of model is not supported.
    """
    if kind := unsupported_kind(file):
        raise DaguerreError(f"'{file.path}' is {kind}.")
    with config_errors(file.path):
        return _detect(file, prediction, heads, ema)


def _detect(file: TensorFile, prediction: Prediction | None, heads: int | tuple[int, ...] | None, ema: bool | None) -> DetectedModel:
    contents = split_components(file.shapes, ema=ema)
    parts, stored = contents.parts, read_stored_configs(file.metadata)
    text_encoders = {
        name: clip_text_config(stored[name], file.path, projected="text_projection.weight" in part.canonical())
        if name in stored
        else clip_from_shapes(part.canonical(), open_clip=part.kind.network == "open_clip_text")
        for name, part in parts.items()
        if part.kind.network in ("clip_text", "open_clip_text")
    }
    detected = DetectedModel(file, contents, text_encoders=text_encoders)
    if "unet" in parts:
        shape = unet_from_shapes(parts["unet"].canonical())
        index = stored.get("model_index", {})
        if index.get("_class_name") in PIXEL_PIPELINES:
            family = FAMILIES["ddpm"]
        elif CONDITION_KEY in index:
            family = FAMILIES["ldm-unconditional"]
        else:
            family = family_of(shape, {name: _network_kind(part) for name, part in parts.items()})
        if "unet" not in stored or heads is not None:
            unet = replace(shape, heads=heads_of(family, shape, heads))
        elif stored["unet"].get("_class_name") == "UNet2DModel":
            unet = unconditional_unet_config(stored["unet"], shape, file.path)
        else:
            unet = unet_config(stored["unet"], file.path)
        if "scheduler" in stored:
            schedule, found = schedule_config(stored["scheduler"], file.path)
            source = "the scheduler's config"
        else:
            schedule = replace(family.schedule, zero_terminal_snr="ztsnr" in file.shapes)
            found, source = prediction_of(family, unet, file.metadata, file.shapes)
        detected = replace(detected, family=family, unet=unet, schedule=schedule, prediction=found, prediction_from=source)
    if prediction is not None:
        detected = replace(detected, prediction=prediction, prediction_from="the caller")
    if "vae" in parts:
        config = stored.get("vae")
        if config is None:
            scale = detected.family.scaling_factor if detected.family else 0.18215
            autoencoder = first_stage_from_shapes(parts["vae"].canonical(), scale)
        else:
            autoencoder = (vq_config if config.get("_class_name") == "VQModel" else autoencoder_config)(config, file.path)
        detected = replace(detected, autoencoder=autoencoder)
    return detected


def _network_kind(part: Component) -> str:
    """The kind of network, with "ldm_boxes" for a text encoder of latent diffusion that does not have BERT's vocabulary."""
    kind = part.kind.network
    return "ldm_boxes" if kind == "ldm_text" and len(part.canonical()["model.embed_tokens.weight"]) != BERT_VOCAB_SIZE else kind


def read_stored_configs(metadata: Mapping[str, str]) -> dict[str, Json]:
    """The configs in the metadata of a file that Daguerre wrote, or of a folder, by part."""
    try:
        stored = json.loads(metadata.get(CONFIGS, "{}"))
    except ValueError:
        return {}
    return {part: config for part, config in stored.items() if isinstance(config, dict)} if isinstance(stored, dict) else {}


def with_file_schedule(detected: DetectedModel) -> DetectedModel:
    """The same model with the noise schedule and the latent scale from the file's own tables, if it has them and no stored configs.

    Numbers that round to those of the family are those of the family: merged files store them in half precision.

    Raises:
        DaguerreError: the file's β are no known schedule.
    """
    file, stored = detected.file, detected.stored_configs
    if (
        "scheduler" not in stored
        and "betas" in file.shapes
        and file.shapes["betas"].is_floating_point()
        and file.shapes["betas"].numel() > 2
    ):
        detected = replace(detected, schedule=_schedule_from_betas(file.tensor("betas").flatten(), detected.schedule, file.path))
    if "vae" not in stored and "scale_factor" in file.shapes and detected.autoencoder is not None:
        scale = unrounded(file.tensor("scale_factor"), detected.autoencoder.scaling_factor)
        detected = replace(detected, autoencoder=replace(detected.autoencoder, scaling_factor=scale))
    return detected


def _schedule_from_betas(betas: Tensor, usual: ScheduleConfig, where: object) -> ScheduleConfig:
    """The schedule with these β (T,) in the file's precision. usual: the family's, preferred if it rounds to the same β.

    Zero terminal SNR changes the schedule after β, except in files that store the changed β, which end at 1.
    """
    betas = _without_conversion(betas)
    rescaled = float(betas[-1]) >= 1
    start, end = usual.beta_start, usual.beta_end
    if not rescaled:
        start, end = unrounded(betas[0], start), unrounded(betas[-1], end)
    tolerance = max(4 * torch.finfo(betas.dtype).eps, 1e-5)
    for kind in dict.fromkeys((usual.kind, "scaled_linear", "linear", "cosine")):
        config = ScheduleConfig(kind, start, end, len(betas), rescaled or usual.zero_terminal_snr)
        alphas_cumprod = Schedule(config).alphas_cumprod
        wanted = torch.cat([1 - alphas_cumprod[:1], 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]]) if rescaled else beta_table(config)
        if torch.allclose(betas.double(), wanted, rtol=tolerance, atol=tolerance * 1e-4):
            return config
    first, last = betas[[0, -1]].tolist()
    raise DaguerreError(
        f"'{where}' has a table of β from {first:.6g} to {last:.6g} that is neither linear, scaled linear nor cosine, so its noise "
        "schedule is unknown. Use another file of the model."
    )


def unrounded(stored: Tensor, usual: float) -> float:
    """The usual number if it rounds to the stored one in its precision, otherwise the shortest decimal number that does."""
    stored = _without_conversion(stored)
    candidates = (usual, *(float(f"{stored.item():.{digits}g}") for digits in range(1, 17)))
    return next(number for number in candidates if bool(torch.tensor(number, dtype=torch.float64).to(stored.dtype) == stored))


def _without_conversion(tensor: Tensor) -> Tensor:
    """The tensor in the lowest precision that holds its values: a file converted to a higher one keeps rounded numbers."""
    lower = (tensor.to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32))
    return next((rounded for rounded in lower if torch.equal(rounded.double(), tensor.double())), tensor)
