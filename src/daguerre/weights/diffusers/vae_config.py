"""Configs of autoencoders to and from the `config.json` of diffusers' `AutoencoderKL` and `VQModel`.

How a codebook is trained has no field in that format. It is stored under `_quantizer`, which other programs ignore.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModelConfig
from daguerre.weights.diffusers.config_fields import Json, check_supported, choose

KL_SUPPORTED: Mapping[str, tuple[object, ...]] = {"act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,)}
VQ_SUPPORTED: Mapping[str, tuple[object, ...]] = {"norm_type": ("group",)}
SHARED_FIELDS = {field.name for field in fields(VQModelConfig)} & {field.name for field in fields(AutoencoderKLConfig)}
KL_ONLY = ("use_quant_conv", "use_post_quant_conv", "shift_factor")
_KEY_OF_FIELD = {"dead_code_threshold": "revive"}  # keys under `_quantizer` that differ from the fields of `QuantizerConfig`
_FIELD_OF_KEY = {key: field for field, key in _KEY_OF_FIELD.items()}


def autoencoder_config(given: Mapping[str, Any], where: object) -> AutoencoderKLConfig:
    """Read the config of an `AutoencoderKL`.

    Raises:
        DaguerreError: an option is not supported.
    """
    check_supported(given, KL_SUPPORTED, where)
    channels = tuple(given.get("block_out_channels", (64,)))
    blocks = given.get("down_block_types", ("DownEncoderBlock2D",) * len(channels))
    attention = [choose(block, {"AttnDownEncoderBlock2D": True, "DownEncoderBlock2D": False}, "down block", where) for block in blocks]
    return AutoencoderKLConfig(
        in_channels=given.get("in_channels", 3),
        out_channels=given.get("out_channels", 3),
        latent_channels=given.get("latent_channels", 4),
        channels=channels,
        blocks=given.get("layers_per_block", 1),
        attention_levels=tuple(level for level, has_attention in enumerate(attention) if has_attention),
        mid_attention=given.get("mid_block_add_attention", True),
        norm_groups=given.get("norm_num_groups", 32),
        quant_conv=given.get("use_quant_conv", True),
        post_quant_conv=given.get("use_post_quant_conv", True),
        scaling_factor=given.get("scaling_factor", 0.18215),
        shift_factor=given.get("shift_factor") or 0.0,
    )


def autoencoder_json(config: AutoencoderKLConfig, sample_size: int) -> Json:
    """The config of an `AutoencoderKL`; `sample_size` is the side of its training images in pixels."""
    attention = [level in config.attention_levels for level in range(len(config.channels))]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["AttnDownEncoderBlock2D" if has_attention else "DownEncoderBlock2D" for has_attention in attention],
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": sample_size,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor or None,
        "up_block_types": ["AttnUpDecoderBlock2D" if has_attention else "UpDecoderBlock2D" for has_attention in reversed(attention)],
        "use_post_quant_conv": config.post_quant_conv,
        "use_quant_conv": config.quant_conv,
    }


def vq_config(given: Mapping[str, Any], where: object) -> VQModelConfig:
    """Read the config of a `VQModel`.

    Raises:
        DaguerreError: an option is not supported.
    """
    check_supported(given, VQ_SUPPORTED, where)
    rest = autoencoder_config({"latent_channels": 3, "scaling_factor": 1.0, **given}, where)
    quantizer = {_FIELD_OF_KEY.get(name, str(name)): value for name, value in given.get("_quantizer", {}).items()}
    if quantizer.get("kind") == "average":
        quantizer["kind"] = "ema"
    if unknown := quantizer.keys() - {field.name for field in fields(QuantizerConfig)}:
        raise DaguerreError(f"'{where}' sets {', '.join(sorted(unknown))} under _quantizer, which is not supported.")
    codes, width = given.get("num_vq_embeddings", 256), given.get("vq_embed_dim") or rest.latent_channels
    shared = {name: getattr(rest, name) for name in SHARED_FIELDS}
    return VQModelConfig(QuantizerConfig(**{**quantizer, "codes": codes, "width": width}), **shared)


def vq_json(config: VQModelConfig, sample_size: int) -> Json:
    """The config of a `VQModel`; `sample_size` is the side of its training images in pixels."""
    shared = autoencoder_json(AutoencoderKLConfig(**{name: getattr(config, name) for name in SHARED_FIELDS}), sample_size)
    quantizer = asdict(config.quantizer)
    codes, width = quantizer.pop("codes"), quantizer.pop("width")
    return {
        **{name: value for name, value in shared.items() if name not in KL_ONLY},
        "_class_name": "VQModel",
        "_quantizer": {_KEY_OF_FIELD.get(name, name): "average" if value == "ema" else value for name, value in quantizer.items()},
        "num_vq_embeddings": codes,
        "vq_embed_dim": width,
    }


def first_stage_json(config: AutoencoderKLConfig | VQModelConfig, sample_size: int) -> Json:
    """The config of an `AutoencoderKL` or a `VQModel`; `sample_size` is the side of its training images in pixels."""
    return vq_json(config, sample_size) if isinstance(config, VQModelConfig) else autoencoder_json(config, sample_size)
