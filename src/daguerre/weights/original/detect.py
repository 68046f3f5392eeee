"""What a checkpoint holds, told from its header: its networks and their configs, its family, what it predicts, and what does not fit.

Names are put into ours by `keys`, shapes give the configs (`shapes`), the family gives the rest (`families`). A file of ours, like a
folder, also carries the configs themselves.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from daguerre.conditioning.class_map_image import ClassConditioner
from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.ldm_bert import LDMBert
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.spatial_rescaler import SpatialRescaler
from daguerre.models.transformer_prior import TransformerPrior
from daguerre.models.unet import UNet, UNetConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.nn.meta import shapes_only
from daguerre.weights.diffusers import configs
from daguerre.weights.diffusers.vae import vq_config
from daguerre.weights.original.components import CheckpointContents, Component, split_components
from daguerre.weights.original.families import STABLE_DIFFUSION, Family, family_of, heads_of, prediction_of
from daguerre.weights.original.infer_config import (
    autoencoder_from_shapes,
    clip_from_shapes,
    ldm_text_from_shapes,
    prior_from_shapes,
    rescaler_from_shapes,
    unet_from_shapes,
    vq_from_shapes,
)
from daguerre.weights.tensors.reader import CONFIGS, TensorFile
from daguerre.weights.tensors.safetensors import config_errors

BERT_WORDS = 30522
# Published kinds of model that are told by pictures, by a name that only they hold.
VARIATIONS = "single file of image variations; those open as a folder of the StableDiffusionImageVariationPipeline"
UNCLIP = "model of Stable Diffusion unCLIP, which is not supported; image variations of Stable Diffusion 1 are, as a folder"
UNSUPPORTED = {
    "noise_augmentor.": UNCLIP,
    "embedder.model.visual.": UNCLIP,
    "cond_stage_model.model.visual.": VARIATIONS,
    "cond_stage_model.transformer.vision_model.": VARIATIONS,
}


@dataclass(frozen=True)
class DetectedModel:
    """What a file holds. Parts without a config here have none of ours, or none yet; `prediction` is None where the file does not say."""

    file: TensorFile
    contents: CheckpointContents
    family: Family | None = None
    unet: UNetConfig | None = None
    autoencoder: AutoencoderKLConfig | VQModelConfig | None = None
    texts: Mapping[str, CLIPTextConfig] = field(default_factory=dict)
    schedule: ScheduleConfig = STABLE_DIFFUSION
    prediction: Prediction | None = None
    prediction_from: str = ""

    @property
    def stored_configs(self) -> Mapping[str, Mapping[str, Any]]:
        """The configs that came with the file, by part; "model_index" is that of a whole folder."""
        return stored_config_texts(self.file.metadata)

    @property
    def size(self) -> int:
        """Pixels on a side of the pictures that it was trained on."""
        if (side := self.stored_configs.get("unet", {}).get("sample_size")) and self.autoencoder is not None:
            return (side if isinstance(side, int) else max(side)) * 2 ** (len(self.autoencoder.channels) - 1)
        if self.family is None:
            return 512
        return 768 if self.family.name == "sd2" and self.prediction == "v" else self.family.size

    def canonical(self, part: Component) -> dict[str, Tensor]:
        """The tensors of a part under our names."""
        return part.canonical(self.unet.heads if self.unet and part.name == "unet" else None)

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """The networks of the parts, built without values; those parts are missing of which there is no network here to compare with."""
        with config_errors(self.file.path):
            found = {name: self._network(part.kind.network, self.canonical(part), name) for name, part in self.contents.parts.items()}
        return {name: network for name, network in found.items() if network is not None}

    def _network(self, kind: str, tensors: Mapping[str, Tensor], part: str) -> nn.Module | None:
        with shapes_only():
            match kind:
                case "unet":
                    return UNet(self.unet or unet_from_shapes(tensors))
                case "autoencoder":
                    # A second autoencoder in a file, of a condition, is told by its shapes alone.
                    config = self.autoencoder if part == "vae" and self.autoencoder else _autoencoder(tensors, 1.0)
                    return VQModel(config) if isinstance(config, VQModelConfig) else AutoencoderKL(config)
                case "clip_text" | "open_clip_text":
                    return CLIPText(self.texts[part])
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
                    return PatchDiscriminator(_discriminator(tensors))
        return None

    def key_errors(self) -> dict[str, list[str]]:
        """The names that do not fit, by what is wrong with them: "missing", "unmatched", "of another shape"."""
        found: dict[str, list[str]] = {"missing": [], "unmatched": list(self.contents.unmatched), "of another shape": []}
        for name, network in self.networks.items():
            wanted, given = network.state_dict(), self.canonical(self.contents.parts[name])
            found["missing"] += [f"{name}/{key}" for key in sorted(wanted.keys() - given.keys())]
            found["unmatched"] += [f"{name}/{key}" for key in sorted(given.keys() - wanted.keys())]
            found["of another shape"] += [
                f"{name}/{key} is {list(given[key].shape)}, expected {list(tensor.shape)}"
                for key, tensor in wanted.items()
                if key in given and given[key].shape != tensor.shape
            ]
        return found


def detect(
    file: TensorFile, *, prediction: Prediction | None = None, heads: int | tuple[int, ...] | None = None, ema: bool | None = None
) -> DetectedModel:
    """Tell what a file holds from its header alone. What the caller gives goes before what the file says.

    Raises:
        DaguerreError: an architecture cannot be told, or the kind of model is not supported.
    """
    for sign, what in UNSUPPORTED.items():
        if any(name.startswith(sign) for name in file.shapes):
            raise DaguerreError(f"'{file.path}' is a {what}.")
    with config_errors(file.path):
        return _described(file, prediction, heads, ema)


def _described(file: TensorFile, prediction: Prediction | None, heads: int | tuple[int, ...] | None, ema: bool | None) -> DetectedModel:
    contents = split_components(file.shapes, ema=ema)
    parts, known = contents.parts, stored_config_texts(file.metadata)
    texts = {
        name: configs.text_config(known[name], file.path, projected="text_projection.weight" in part.canonical())
        if name in known
        else clip_from_shapes(part.canonical(), open_clip=part.kind.network == "open_clip_text")
        for name, part in parts.items()
        if part.kind.network in ("clip_text", "open_clip_text")
    }
    about = DetectedModel(file, contents, texts=texts)
    if "unet" in parts:
        shape = unet_from_shapes(parts["unet"].canonical())
        family = family_of(shape, {name: _text_kind(part) for name, part in parts.items()})
        whole = "unet" in known and heads is None
        if whole and known["unet"].get("_class_name") == "UNet2DModel":
            unet = configs.plain_unet_config(known["unet"], shape, file.path)
        else:
            unet = configs.unet_config(known["unet"], file.path) if whole else replace(shape, heads=heads_of(family, shape, heads))
        if "scheduler" in known:
            schedule, found = configs.schedule_config(known["scheduler"], file.path)
            why = "the scheduler's config"
        else:
            schedule = replace(family.schedule, zero_terminal_snr="ztsnr" in file.shapes)
            found, why = prediction_of(family, unet, file.metadata, file.shapes)
        about = replace(about, family=family, unet=unet, schedule=schedule, prediction=found, prediction_from=why)
    if prediction is not None:
        about = replace(about, prediction=prediction, prediction_from="the caller")
    if "vae" in parts:
        scale = about.family.scaling_factor if about.family else 0.18215
        if known.get("vae", {}).get("_class_name") == "VQModel":
            found = vq_config(known["vae"], file.path)
        else:
            found = configs.autoencoder_config(known["vae"], file.path) if "vae" in known else _autoencoder(parts["vae"].canonical(), scale)
        about = replace(about, autoencoder=found)
    return about


def _text_kind(part: Component) -> str:
    """The kind of a part; of latent diffusion's text towers those that do not read BERT's words read boxes."""
    kind = part.kind.network
    return "ldm_boxes" if kind == "ldm_text" and len(part.canonical()["model.embed_tokens.weight"]) != BERT_WORDS else kind


def stored_config_texts(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The configs that a file of ours or a folder carries, by part."""
    try:
        known = json.loads(metadata.get(CONFIGS, "{}"))
    except ValueError:
        return {}
    return {part: config for part, config in known.items() if isinstance(config, dict)} if isinstance(known, dict) else {}


def with_file_schedule(about: DetectedModel) -> DetectedModel:
    """The same with the noise schedule and the latents' scale that stand in the file's own tables, where it has them."""
    file, known = about.file, stored_config_texts(about.file.metadata)
    if "scheduler" not in known and "betas" in file.shapes and (betas := file.tensor("betas").double()).numel() > 2:
        betas = betas.flatten()
        first, last, middle = (float(betas[i]) for i in (0, -1, len(betas) // 2))
        even = first + (last - first) * (len(betas) // 2) / (len(betas) - 1)
        kind = "linear" if abs(middle - even) < 1e-3 * last else "scaled_linear"
        schedule = ScheduleConfig(kind, round(first, 9), round(last, 9), len(betas), about.schedule.zero_terminal_snr)
        about = replace(about, schedule=schedule)
    if "vae" not in known and "scale_factor" in file.shapes and about.autoencoder is not None:
        scale = float(file.tensor("scale_factor").double())
        about = replace(about, autoencoder=replace(about.autoencoder, scaling_factor=round(scale, 9)))
    return about


def _autoencoder(tensors: Mapping[str, Tensor], scaling_factor: float) -> AutoencoderKLConfig | VQModelConfig:
    """The config of either kind. A codebook's latents are not scaled, unless a file says so."""
    quantized = any(name.startswith("quantize.") for name in tensors)
    return vq_from_shapes(tensors) if quantized else autoencoder_from_shapes(tensors, scaling_factor)


def _discriminator(tensors: Mapping[str, Tensor]) -> PatchDiscriminatorConfig:
    width, channels = tensors["main.0.weight"].shape[:2]
    return PatchDiscriminatorConfig(channels, width, sum(name.endswith("running_mean") for name in tensors))
