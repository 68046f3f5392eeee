"""A whole model into the field's folder layout, for other programs and for `folder` and `single_file` to open again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.conditioning import LDMTextConditioner, SDXLConditioner, TextConditioner, Tokenizer, WordPiece
from daguerre.conditioning.class_map_image import ImageConditioner, UnconditionalConditioner
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.vq_model import VQModel
from daguerre.nn.meta import shapes_only
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.clip import preprocessor_json, vision_json
from daguerre.weights.diffusers.configs import Json, ldm_text_json, low_resolution_json, schedule_json, text_json, unet_json
from daguerre.weights.diffusers.index import GUIDANCE, UPSCALER, model_index, pipeline_of
from daguerre.weights.diffusers.load import SCHEDULER_CONFIG, check_overwrite, write_part
from daguerre.weights.diffusers.vae import first_stage_json
from daguerre.weights.original.families import family_of
from daguerre.weights.tensors.safetensors import write_json

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class NetworkFiles:
    """A network as the layout has it: its class and config, and its tensors."""

    config: Json
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        return class_of(self.config)


@dataclass(frozen=True)
class ConditionerFiles:
    """What a conditioner is in the layout. kinds: of its networks, as `families.family_of` knows them. options: of the pipeline."""

    parts: Mapping[str, NetworkFiles] = field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer | WordPiece] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def save_folder(model: LatentDiffusion, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a whole model so that diffusers opens it, too, with the pipeline for what it does; an older folder of that name is replaced.
    A refiner beside the model is a model of its own and is saved as one.

    Args:
        dtype: of the saved tensors; None keeps each as it is.

    Raises:
        DaguerreError: the layout has no words for a part, or the place cannot be written. What stood there stands.
    """
    folder, told = Path(folder), _conditioner_files(model.conditioner)
    family = family_of(model.unet.config, told.kinds)
    pipeline = pipeline_of(family, model.unet.config, told.parts)
    if pipeline is None:
        raise DaguerreError(f"A model of the kind {family.name} has no place in the folder layout, as the field has no pipeline for it.")
    check_overwrite(folder, INDEX)
    name, first_stage = _first_stage(model, pipeline)
    unet = NetworkFiles(unet_json(model.unet.config, model.sample_size // model.autoencoder.downsample_factor), model.unet.state_dict())
    parts = {"unet": unet, name: first_stage, **told.parts}
    schedulers = {"scheduler": schedule_json(model.schedule.config, model.prediction)}
    if pipeline == UPSCALER:
        low = model.low_res_schedule.config if model.low_res_schedule else model.schedule.config
        schedulers["low_res_scheduler"] = low_resolution_json(low)
    with atomic_path(folder) as beside:
        for name, part in parts.items():
            write_part(beside / name, part.config, part.tensors, dtype)
        for name, tokenizer in told.tokenizers.items():
            tokenizer.save(beside / name)
        for name, config in schedulers.items():
            (beside / name).mkdir()
            write_json(beside / name / SCHEDULER_CONFIG, config)
        classes = {name: part.kind for name, part in parts.items()} | {name: config["_class_name"] for name, config in schedulers.items()}
        classes |= {name: tokenizer_class(tokenizer) for name, tokenizer in told.tokenizers.items()}
        if isinstance(model.conditioner, ImageConditioner):
            (beside / "feature_extractor").mkdir()
            write_json(beside / "feature_extractor" / PREPROCESSOR, preprocessor_json(model.conditioner.encoder.config))
            classes["feature_extractor"] = "CLIPImageProcessor"
        own = {} if model.default_guidance == LatentDiffusion.default_guidance else {GUIDANCE: model.default_guidance}
        write_json(beside / INDEX, model_index(pipeline, classes, {**told.options, **own}))
    return folder


def class_of(config: Mapping[str, Any]) -> str:
    """The class that a part's config names, in diffusers' or in transformers' way."""
    return config.get("_class_name") or config["architectures"][0]


def tokenizer_class(tokenizer: Tokenizer | WordPiece) -> str:
    """What transformers calls it."""
    return "CLIPTokenizer" if isinstance(tokenizer, Tokenizer) else "BertTokenizer"


def _conditioner_files(conditioner: Callable[[Sequence[str]], Conditioning]) -> ConditionerFiles:
    match conditioner:
        case TextConditioner():
            part = _text(conditioner.tokenizer, _trim_text_encoder(conditioner))
            return ConditionerFiles({"text_encoder": part}, {"tokenizer": conditioner.tokenizer}, {"text_encoder": "clip_text"})
        case SDXLConditioner():
            return _sdxl_files(conditioner)
        case LDMTextConditioner():
            encoder = conditioner.encoder
            part = NetworkFiles(ldm_text_json(encoder.config, conditioner.tokenizer.pad), encoder.state_dict())
            return ConditionerFiles({"bert": part}, {"tokenizer": conditioner.tokenizer}, {"text_encoder": "ldm_text"})
        case ImageConditioner():
            encoder = conditioner.encoder
            config = {"architectures": ["CLIPVisionModelWithProjection"], **vision_json(encoder.config)}
            return ConditionerFiles({"image_encoder": NetworkFiles(config, encoder.state_dict())}, kinds={"image_encoder": "clip_vision"})
        case UnconditionalConditioner():
            return ConditionerFiles()
    raise DaguerreError(f"A model that is told by a {type(conditioner).__name__} has no place in the folder layout.")


def _sdxl_files(conditioner: SDXLConditioner) -> ConditionerFiles:
    towers = [tower for tower in conditioner.towers if isinstance(tower, TextConditioner)]
    if any((tower.layer, tower.norm) != (-2, False) for tower in towers):
        raise DaguerreError("SDXL's folder layout has no words for text towers that are read elsewhere than at the last layer but one.")
    names = ("", "_2")[-len(towers) :]
    options: dict[str, Any] = {"force_zeros_for_empty_prompt": conditioner.zero_empty}
    if conditioner.uses_aesthetic_score:
        options["requires_aesthetics_score"] = True
    return ConditionerFiles(
        {f"text_encoder{name}": _text(tower.tokenizer, tower.encoder) for name, tower in zip(names, towers, strict=True)},
        {f"tokenizer{name}": tower.tokenizer for name, tower in zip(names, towers, strict=True)},
        {f"text_encoder{name}": "clip_text" for name in names},
        options,
    )


def _text(tokenizer: Tokenizer, encoder: CLIPText) -> NetworkFiles:
    return NetworkFiles(text_json(encoder.config, bos=tokenizer.bos, pad=tokenizer.pad), encoder.state_dict())


def _first_stage(model: LatentDiffusion, pipeline: str) -> tuple[str, NetworkFiles]:
    """The folder of the autoencoder, and what lies in it."""
    latent_diffusion = pipeline.startswith("LDM")
    match autoencoder := model.autoencoder:
        case AutoencoderKL():
            config, state = _unshifted(autoencoder)
            return "vqvae" if latent_diffusion else "vae", NetworkFiles(first_stage_json(config, model.sample_size), state)
        case VQModel() if latent_diffusion:
            return "vqvae", NetworkFiles(first_stage_json(autoencoder.config, model.sample_size), autoencoder.state_dict())
    raise DaguerreError(f"The {pipeline} of the folder layout has no place for a first stage of the kind {type(autoencoder).__name__}.")


def _trim_text_encoder(conditioner: TextConditioner) -> CLIPText:
    """The text tower without what its states do not need: the blocks above the layer that is read, because readers of this layout
    always read the last, and the projection, because they would read the projected vector in place of the states."""
    encoder = conditioner.encoder
    if not conditioner.norm:
        raise DaguerreError("A text encoder that is read without its final norm has no place in the folder layout of Stable Diffusion.")
    config = replace(encoder.config, layers=encoder.config.layers + 1 + conditioner.layer, projection=None)
    with shapes_only():
        cut = CLIPText(config)
    cut.load_state_dict({name: encoder.state_dict()[name] for name in cut.state_dict()}, strict=True, assign=True)
    return cut


def _unshifted(autoencoder: AutoencoderKL) -> tuple[AutoencoderKLConfig, dict[str, Tensor]]:
    """The autoencoder with its `shift_factor` moved into the biases next to the latent, because diffusers' pipelines for this layout
    scale latents and do not shift them: the encoder's mean loses the shift s, and W·(l + s) + b = W·l + (W·s + b)."""
    config, state, shift = autoencoder.config, autoencoder.state_dict(), autoencoder.config.shift_factor
    if not shift:
        return config, state
    Z = config.latent_channels
    before, after = "quant_conv" if config.quant_conv else "encoder.conv_out", "post_quant_conv"
    bias = state[f"{before}.bias"]
    lower = torch.cat([torch.full((Z,), shift), torch.zeros(Z)]).to(bias)  # the mean's half of the moments, not the variance's
    if not config.post_quant_conv:  # the decoder's first convolution pads with zeros, so only a 1×1 before it can add the shift
        state |= {f"{after}.weight": torch.eye(Z)[..., None, None].to(bias), f"{after}.bias": torch.zeros(Z).to(bias)}
    added = shift * state[f"{after}.weight"].sum((1, 2, 3))  # (Z,)
    state |= {f"{before}.bias": bias - lower, f"{after}.bias": state[f"{after}.bias"] + added}
    return replace(config, shift_factor=0.0, post_quant_conv=True), state
