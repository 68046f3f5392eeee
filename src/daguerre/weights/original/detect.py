"""Detect the model in a checkpoint from its header: networks and their configs, family, prediction type, and names that do not fit.

`components` finds the networks, `infer_config` derives their configs from shapes, and `families` adds what shapes do not determine. A
file that Daguerre wrote, like a folder, also stores the configs themselves.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn

from daguerre.conditioning.class_map_image import ClassConditioner
from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import ScheduleConfig
from daguerre.errors import DaguerreError, join_names
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.patch_discriminator import PatchDiscriminator
from daguerre.models.spatial_rescaler import SpatialRescaler
from daguerre.models.transformer_prior import TransformerPrior
from daguerre.models.unet import UNet, UNetConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.nn.meta import shapes_only
from daguerre.weights.diffusers.clip_config import clip_text_config
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.scheduler_config import schedule_config
from daguerre.weights.diffusers.unet_config import unconditional_unet_config, unet_config
from daguerre.weights.diffusers.vae_config import autoencoder_config, vq_config
from daguerre.weights.original.components import CheckpointContents, Component, split_components
from daguerre.weights.original.families import STABLE_DIFFUSION_SCHEDULE, Family, family_of, heads_of, prediction_of
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
IMAGE_VARIATION_FILE = "single file of image variations; those open as a folder of the StableDiffusionImageVariationPipeline"
UNCLIP = "model of Stable Diffusion unCLIP, which is not supported; image variations of Stable Diffusion 1 are, as a folder"
# Published models that are conditioned on CLIP image embeddings, by a prefix that only they have.
UNSUPPORTED = {
    "noise_augmentor.": UNCLIP,
    "embedder.model.visual.": UNCLIP,
    "cond_stage_model.model.visual.": IMAGE_VARIATION_FILE,
    "cond_stage_model.transformer.vision_model.": IMAGE_VARIATION_FILE,
}


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
            raise DaguerreError(f"'{self.file.path}' does not fit the {model} that it seems to hold: {lists}.")


def detect(
    file: TensorFile, *, prediction: Prediction | None = None, heads: int | tuple[int, ...] | None = None, ema: bool | None = None
) -> DetectedModel:
    """Detect the model in a file from its header. The arguments override what the file contains; see `load_single_file`.

    Raises:
        DaguerreError: an architecture cannot be determined, or the kind of model is not supported.
    """
    for prefix, kind in UNSUPPORTED.items():
        if any(name.startswith(prefix) for name in file.shapes):
            raise DaguerreError(f"'{file.path}' is a {kind}.")
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
    """The same model with the noise schedule and the latent scale from the file's own tables, if it has them and no stored configs."""
    file, stored = detected.file, detected.stored_configs
    if "scheduler" not in stored and "betas" in file.shapes and (betas := file.tensor("betas").double()).numel() > 2:
        betas = betas.flatten()
        first, last, middle = (float(betas[i]) for i in (0, -1, len(betas) // 2))
        linear_middle = first + (last - first) * (len(betas) // 2) / (len(betas) - 1)
        kind = "linear" if abs(middle - linear_middle) < 1e-3 * last else "scaled_linear"
        schedule = ScheduleConfig(kind, round(first, 9), round(last, 9), len(betas), detected.schedule.zero_terminal_snr)
        detected = replace(detected, schedule=schedule)
    if "vae" not in stored and "scale_factor" in file.shapes and detected.autoencoder is not None:
        scale = float(file.tensor("scale_factor").double())
        detected = replace(detected, autoencoder=replace(detected.autoencoder, scaling_factor=round(scale, 9)))
    return detected
