"""Save a complete model in the diffusers folder layout, which diffusers, `load_folder` and `load_single_file` can open."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path, check_overwrite
from daguerre.conditioning import LDMTextConditioner, SDXLConditioner, TextConditioner, Tokenizer, WordPiece
from daguerre.conditioning.class_map_image import (
    ConcatConditioner,
    ImageConditioner,
    LabelConditioner,
    LayoutConditioner,
    UnconditionalConditioner,
)
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.tiny_autoencoder import TinyDecoder
from daguerre.models.vq_model import VQModel
from daguerre.nn.meta import shapes_only
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.clip_config import clip_text_json, clip_vision_json, image_processor_json, ldm_bert_json
from daguerre.weights.diffusers.config_fields import Json
from daguerre.weights.diffusers.folder_names import SCHEDULER_CONFIG_FILE
from daguerre.weights.diffusers.index import GUIDANCE_KEY, UPSCALE_PIPELINE, model_index, pipeline_class
from daguerre.weights.diffusers.load import write_part
from daguerre.weights.diffusers.pixel import conditioner_fields
from daguerre.weights.diffusers.scheduler_config import low_res_schedule_json, schedule_json
from daguerre.weights.diffusers.unet_config import unet_json
from daguerre.weights.diffusers.vae_config import first_stage_json
from daguerre.weights.original.families import family_of
from daguerre.weights.tensors.safetensors import write_json
from daguerre.weights.tiny_autoencoder import PREVIEW_FILE, save_tiny_decoder

PREPROCESSOR_CONFIG = "preprocessor_config.json"


@dataclass(frozen=True)
class NetworkFiles:
    """The config and the tensors of one network, as they are saved."""

    config: Json
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class ConditionerFiles:
    """The files of a conditioner. kinds: of its networks, for `family_of`. options: of the pipeline."""

    parts: Mapping[str, NetworkFiles] = field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer | WordPiece] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def save_folder(model: LatentDiffusion, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a model atomically, replacing an older one, so that the diffusers pipeline for its task can open it.

    A refiner is a model of its own and is saved separately.

    Args:
        dtype: of the saved floating-point tensors; None keeps their own.

    Raises:
        DaguerreError: the layout cannot express a part, or the folder cannot be written; its content is unchanged.
    """
    folder, conditioner = Path(folder), _conditioner_files(model)
    family = family_of(model.unet.config, conditioner.kinds)
    pipeline = pipeline_class(family, model.unet.config, conditioner.parts)
    if pipeline is None:
        raise DaguerreError(f"A model of the family {family.name} cannot be saved as a folder, because diffusers has no pipeline for it.")
    check_overwrite(folder, INDEX)
    name, first_stage = _first_stage_files(model, pipeline)
    unet = NetworkFiles(unet_json(model.unet.config, model.sample_size // model.autoencoder.downsample_factor), model.unet.state_dict())
    parts = {"unet": unet, name: first_stage, **conditioner.parts}
    schedulers = {"scheduler": schedule_json(model.schedule.config, model.prediction)}
    if pipeline == UPSCALE_PIPELINE:
        schedulers["low_res_scheduler"] = low_res_schedule_json((model.low_res_schedule or model.schedule).config)
    classes = {name: class_name(part.config) for name, part in parts.items()}
    classes |= {name: config["_class_name"] for name, config in schedulers.items()}
    classes |= {name: tokenizer_class(tokenizer) for name, tokenizer in conditioner.tokenizers.items()}
    with atomic_path(folder) as temporary:
        for name, part in parts.items():
            write_part(temporary / name, part.config, part.tensors, dtype)
        for name, tokenizer in conditioner.tokenizers.items():
            tokenizer.save(temporary / name)
        for name, config in schedulers.items():
            (temporary / name).mkdir()
            write_json(temporary / name / SCHEDULER_CONFIG_FILE, config)
        if isinstance(model.conditioner, ImageConditioner):
            (temporary / "feature_extractor").mkdir()
            write_json(temporary / "feature_extractor" / PREPROCESSOR_CONFIG, image_processor_json(model.conditioner.encoder.config))
            classes["feature_extractor"] = "CLIPImageProcessor"
        if isinstance(model.preview_decoder, TinyDecoder):
            save_tiny_decoder(temporary / PREVIEW_FILE, model.preview_decoder, dtype=dtype)
        guidance = {} if model.default_guidance == LatentDiffusion.default_guidance else {GUIDANCE_KEY: model.default_guidance}
        write_json(temporary / INDEX, model_index(pipeline, classes, {**conditioner.options, **guidance}))
    return folder


def class_name(config: Mapping[str, Any]) -> str:
    """The class in a config of diffusers or transformers."""
    return config.get("_class_name") or config["architectures"][0]


def tokenizer_class(tokenizer: Tokenizer | WordPiece) -> str:
    """The class of a tokenizer in transformers."""
    return "CLIPTokenizer" if isinstance(tokenizer, Tokenizer) else "BertTokenizer"


def _conditioner_files(model: LatentDiffusion) -> ConditionerFiles:
    match conditioner := model.conditioner:
        case TextConditioner():
            part = _text_files(conditioner.tokenizer, _trim_text_encoder(conditioner))
            return ConditionerFiles({"text_encoder": part}, {"tokenizer": conditioner.tokenizer}, {"text_encoder": "clip_text"})
        case SDXLConditioner():
            return _sdxl_files(conditioner)
        case LDMTextConditioner():
            encoder = conditioner.encoder
            part = NetworkFiles(ldm_bert_json(encoder.config, conditioner.tokenizer.pad), encoder.state_dict())
            return ConditionerFiles({"bert": part}, {"tokenizer": conditioner.tokenizer}, {"text_encoder": "ldm_text"})
        case ImageConditioner():
            encoder = conditioner.encoder
            config = {"architectures": ["CLIPVisionModelWithProjection"], **clip_vision_json(encoder.config)}
            return ConditionerFiles({"image_encoder": NetworkFiles(config, encoder.state_dict())}, kinds={"image_encoder": "clip_vision"})
        case LayoutConditioner():
            part = NetworkFiles(ldm_bert_json(conditioner.encoder.config, 0), conditioner.encoder.state_dict())
            return ConditionerFiles({"bert": part}, kinds={"text_encoder": "ldm_boxes"}, options=conditioner_fields(conditioner))
        case ConcatConditioner():
            # Diffusers has a pipeline for small images of the size of latents with three channels.
            as_published = conditioner.kind == "low-res" and conditioner.scale == model.autoencoder.downsample_factor
            as_published = as_published and model.latent_channels == 3
            return ConditionerFiles(kinds={} if as_published else {"condition": "concat"}, options=conditioner_fields(conditioner))
        case UnconditionalConditioner() | LabelConditioner():
            return ConditionerFiles(options=conditioner_fields(conditioner))
    raise DaguerreError(f"A model with a {type(conditioner).__name__} cannot be saved in the diffusers folder layout.")


def _sdxl_files(conditioner: SDXLConditioner) -> ConditionerFiles:
    towers = [tower for tower in conditioner.towers if isinstance(tower, TextConditioner)]
    if any((tower.layer, tower.norm) != (-2, False) for tower in towers):
        raise DaguerreError("The diffusers folder layout for SDXL requires text encoders that output their penultimate layer without norm.")
    suffixes = ("", "_2")[-len(towers) :]
    options: dict[str, Any] = {"force_zeros_for_empty_prompt": conditioner.zero_empty}
    if conditioner.uses_aesthetic_score:
        options["requires_aesthetics_score"] = True
    return ConditionerFiles(
        {f"text_encoder{suffix}": _text_files(tower.tokenizer, tower.encoder) for suffix, tower in zip(suffixes, towers, strict=True)},
        {f"tokenizer{suffix}": tower.tokenizer for suffix, tower in zip(suffixes, towers, strict=True)},
        {f"text_encoder{suffix}": "clip_text" for suffix in suffixes},
        options,
    )


def _text_files(tokenizer: Tokenizer, encoder: CLIPText) -> NetworkFiles:
    return NetworkFiles(clip_text_json(encoder.config, bos=tokenizer.bos, pad=tokenizer.pad), encoder.state_dict())


def _first_stage_files(model: LatentDiffusion, pipeline: str) -> tuple[str, NetworkFiles]:
    """The folder name of the autoencoder, and its files."""
    is_ldm = pipeline.startswith("LDM")
    match autoencoder := model.autoencoder:
        case AutoencoderKL():
            config, tensors = _without_shift(autoencoder)
            return "vqvae" if is_ldm else "vae", NetworkFiles(first_stage_json(config, model.sample_size), tensors)
        case VQModel() if is_ldm:
            return "vqvae", NetworkFiles(first_stage_json(autoencoder.config, model.sample_size), autoencoder.state_dict())
    raise DaguerreError(f"The {pipeline} of diffusers does not support a {type(autoencoder).__name__} as its first stage.")


def _trim_text_encoder(conditioner: TextConditioner) -> CLIPText:
    """The text encoder without the parts that its output does not need: the layers above the one that is used, and the projection.

    Readers of this layout always use the last layer, and would use the projected vector instead of the hidden states.
    """
    encoder = conditioner.encoder
    if not conditioner.norm:
        raise DaguerreError("The diffusers folder layout for Stable Diffusion requires a text encoder whose output has the final norm.")
    config = replace(encoder.config, layers=encoder.config.layers + 1 + conditioner.layer, projection=None)
    with shapes_only():
        trimmed = CLIPText(config)
    trimmed.load_state_dict({name: encoder.state_dict()[name] for name in trimmed.state_dict()}, strict=True, assign=True)
    return trimmed


def _without_shift(autoencoder: AutoencoderKL) -> tuple[AutoencoderKLConfig, dict[str, Tensor]]:
    """The autoencoder's config and tensors with `shift_factor` folded into the biases next to the latents.

    The diffusers pipelines for this layout scale latents but do not shift them. The encoder's mean is reduced by the shift s, and the
    decoder's first 1×1 convolution adds it: W·(z + s) + b = W·z + (W·s + b).
    """
    config, tensors, shift = autoencoder.config, autoencoder.state_dict(), autoencoder.config.shift_factor
    if not shift:
        return config, tensors
    Z = config.latent_channels
    before, after = "quant_conv" if config.quant_conv else "encoder.conv_out", "post_quant_conv"
    bias = tensors[f"{before}.bias"]
    mean_shift = torch.cat([torch.full((Z,), shift), torch.zeros(Z)]).to(bias)  # (2·Z,): the mean is shifted, the log-variance is not
    if not config.post_quant_conv:  # the decoder's first convolution pads with zeros, so only a 1×1 convolution before it can add the shift
        tensors |= {f"{after}.weight": torch.eye(Z)[..., None, None].to(bias), f"{after}.bias": torch.zeros(Z).to(bias)}
    added = shift * tensors[f"{after}.weight"].sum((1, 2, 3))  # (Z,)
    tensors |= {f"{before}.bias": bias - mean_shift, f"{after}.bias": tensors[f"{after}.bias"] + added}
    return replace(config, shift_factor=0.0, post_quant_conv=True), tensors
