"""Configs of CLIP's text and vision towers and of LDMBert, to and from the `config.json` of transformers."""

from collections.abc import Mapping
from typing import Any

from daguerre.models.clip import Activation, CLIPTextConfig, CLIPVisionConfig
from daguerre.models.ldm_bert import LDMBertConfig
from daguerre.weights.diffusers.config_fields import Json, choose

ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
# Mean and standard deviation (red, green, blue) of CLIP's training images.
IMAGE_MEAN = 0.48145466, 0.4578275, 0.40821073
IMAGE_STD = 0.26862954, 0.26130258, 0.27577711


def clip_text_config(given: Mapping[str, Any], where: object, *, projected: bool = False) -> CLIPTextConfig:
    """Read the config of a `CLIPTextModel`, or of a `CLIPTextModelWithProjection` if `projected`.

    Raises:
        DaguerreError: the activation is not supported.
    """
    vocab_size, eos = given.get("vocab_size", 49408), given.get("eos_token_id", 49407)
    return CLIPTextConfig(
        vocab_size=vocab_size,
        length=given.get("max_position_embeddings", 77),
        width=given.get("hidden_size", 512),
        layers=given.get("num_hidden_layers", 12),
        heads=given.get("num_attention_heads", 8),
        mlp_width=given.get("intermediate_size", 2048),
        activation=choose(given.get("hidden_act", "quick_gelu"), ACTIVATIONS, "activation", where),
        projection=given.get("projection_dim", 512) if projected else None,
        eps=given.get("layer_norm_eps", 1e-5),
        eos=vocab_size - 1 if eos == 2 else eos,  # 2 is a known mistake in published files; it means the last id
    )


def clip_text_json(config: CLIPTextConfig, *, bos: int, pad: int) -> Json:
    """The config of a `CLIPTextModel`, or of a `CLIPTextModelWithProjection`; `bos` and `pad` are the tokenizer's ids."""
    return {
        "architectures": ["CLIPTextModel" if config.projection is None else "CLIPTextModelWithProjection"],
        "bos_token_id": bos,
        "dtype": "float32",  # of the computation. With a smaller dtype of the file, transformers would use that one, and diffusers fails
        "eos_token_id": config.eos,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.eps,
        "max_position_embeddings": config.length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": pad,
        "projection_dim": config.projection or config.width,
        "vocab_size": config.vocab_size,
    }


def clip_vision_config(given: Mapping[str, Any], where: object) -> CLIPVisionConfig:
    """Read the config of a `CLIPVisionModelWithProjection`.

    Raises:
        DaguerreError: the activation is not supported.
    """
    return CLIPVisionConfig(
        size=given.get("image_size", 224),
        patch=given.get("patch_size", 32),
        channels=given.get("num_channels", 3),
        width=given.get("hidden_size", 768),
        layers=given.get("num_hidden_layers", 12),
        heads=given.get("num_attention_heads", 12),
        mlp_width=given.get("intermediate_size", 3072),
        activation=choose(given.get("hidden_act", "quick_gelu"), ACTIVATIONS, "activation", where),
        projection=given.get("projection_dim", 512),
        eps=given.get("layer_norm_eps", 1e-5),
    )


def clip_vision_json(config: CLIPVisionConfig) -> Json:
    """The config of a vision tower, without its class name."""
    return {
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "image_size": config.size,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.eps,
        "model_type": "clip_vision_model",
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch,
        "projection_dim": config.projection,
    }


def image_processor_json(config: CLIPVisionConfig) -> Json:
    """The config of the `CLIPImageProcessor` that prepares images for a vision tower."""
    side = config.size
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(IMAGE_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }


def ldm_bert_json(config: LDMBertConfig, pad: int) -> Json:
    """The config of an `LDMBertModel`; `pad` is the tokenizer's id."""
    return {
        "activation_function": "gelu",
        "architectures": ["LDMBertModel"],
        "d_model": config.width,
        "encoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.mlp_width,
        "encoder_layers": config.layers,
        "head_dim": config.head_width,
        "max_position_embeddings": config.length,
        "model_type": "ldmbert",
        "pad_token_id": pad,
        "vocab_size": config.vocab_size,
    }
