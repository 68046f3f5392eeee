"""Configs of UNets to and from the `config.json` of diffusers' `UNet2DConditionModel` and `UNet2DModel`.

An option that is not supported raises an error that names it. Options that only control how another program computes
(`upcast_attention`) are ignored. A missing field has the default of diffusers.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from daguerre.errors import DaguerreError
from daguerre.models.unet import UNetConfig
from daguerre.weights.diffusers.config_fields import Json, check_supported, choose, per_level, same_for_all_levels

# Options of a `UNet2DConditionModel` with the values that all Stable Diffusion models have.
UNET_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
UNCONDITIONAL_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "mid_block_scale_factor": (1,),
    "time_embedding_type": ("positional",),
}


def unet_config(given: Mapping[str, Any], where: object) -> UNetConfig:
    """Read the config of a `UNet2DConditionModel`. Its `attention_head_dim` is the number of heads, despite its name.

    Raises:
        DaguerreError: an option is not supported.
    """
    check_supported(given, UNET_SUPPORTED, where)
    channels = tuple(given.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(channels)
    down_blocks = given.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up_blocks = given.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    down = [choose(block, {"CrossAttnDownBlock2D": True, "DownBlock2D": False}, "down block", where) for block in down_blocks]
    up = [choose(block, {"CrossAttnUpBlock2D": True, "UpBlock2D": False}, "up block", where) for block in up_blocks]
    if down != up[::-1]:
        raise DaguerreError(f"'{where}' has attention at different levels in its down blocks and up blocks, which is not supported.")
    depths = per_level(given.get("transformer_layers_per_block", 1), levels)
    cross_only = per_level(given.get("only_cross_attention", False), levels)
    has_vector = choose(given.get("addition_embed_type"), {None: False, "text_time": True}, "addition_embed_type", where)
    time_scale = given.get("resnet_time_scale_shift", "default")
    return UNetConfig(
        in_channels=given.get("in_channels", 4),
        out_channels=given.get("out_channels", 4),
        channels=channels,
        blocks=same_for_all_levels(given.get("layers_per_block", 2), "layers_per_block", where),
        depth=tuple(depth if has_attention else 0 for depth, has_attention in zip(depths, down, strict=True)),
        mid_depth=depths[-1],
        heads=per_level(given.get("attention_head_dim", 8), levels),
        context_width=same_for_all_levels(given.get("cross_attention_dim", 1280), "cross_attention_dim", where),
        vector_width=given["projection_class_embeddings_input_dim"] if has_vector else None,
        classes=given.get("num_class_embeds"),
        linear_projection=given.get("use_linear_projection", False),
        cross_only_levels=tuple(level for level, only in enumerate(cross_only) if only),
        scale_shift=choose(time_scale, {"default": False, "scale_shift": True}, "resnet_time_scale_shift", where),
        **_common_fields(given),
    )


def unconditional_unet_config(given: Mapping[str, Any], shape: UNetConfig, where: object) -> UNetConfig:
    """Read the config of a `UNet2DModel`, which has no cross-attention. Its `attention_head_dim` is the width of a head.

    Args:
        shape: the config inferred from the shapes of the tensors; the fields that shapes do not determine are replaced.

    Raises:
        DaguerreError: an option is not supported.
    """
    check_supported(given, UNCONDITIONAL_SUPPORTED, where)
    width = given.get("attention_head_dim", 8)
    heads = tuple(channels // width if width else 1 for channels in shape.channels)
    return replace(shape, heads=heads, **_common_fields(given))


def _common_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "downsample_padding": given.get("downsample_padding", 1),
        "dropout": given.get("dropout", 0.0),
        "norm_groups": given.get("norm_num_groups", 32),
        "norm_eps": given.get("norm_eps", 1e-5),
        "time_cos_first": given.get("flip_sin_to_cos", True),
        "time_frequency_shift": given.get("freq_shift", 0),
    }


def unet_json(config: UNetConfig, sample_size: int) -> Json:
    """The config of a `UNet2DConditionModel`, or of a `UNet2DModel` without cross-attention; `sample_size` is the side of its latents.

    Raises:
        DaguerreError: the format has no field for an option of this UNet.
    """
    if config.context_width is None:
        return _unconditional_unet_json(config, sample_size)
    inexpressible = {
        "residual blocks that resample": config.resample != "conv",
        "no attention in the middle": config.mid_depth == 0,
        "another depth in the middle than at the last level": config.depth[-1] not in (0, config.mid_depth),
    }
    for reason in (reason for reason, applies in inexpressible.items() if applies):
        raise DaguerreError(f"A UNet with {reason} cannot be saved in the diffusers folder layout.")
    depths = [depth or 1 for depth in config.depth[:-1]] + [config.mid_depth]
    cross_only = [level in config.cross_only_levels for level in range(len(config.channels))]
    vector = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": config.vector_width,
    }
    fields = {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": list(config.heads),
        "cross_attention_dim": config.context_width,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.depth],
        "mid_block_scale_factor": 1,
        "only_cross_attention": cross_only if any(cross_only) else False,
        "transformer_layers_per_block": depths if set(depths) != {1} else 1,
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(config.depth)],
        "use_linear_projection": config.linear_projection,
        **_common_json(config, sample_size),
    }
    return dict(sorted(fields.items())) | (vector if config.vector_width else {})


def _unconditional_unet_json(config: UNetConfig, sample_size: int) -> Json:
    attention_levels = [*(level for level, depth in enumerate(config.depth) if depth), len(config.channels) - 1]  # the last is the middle's
    head_widths = {config.channels[level] // config.heads[level] for level in attention_levels}
    if len(head_widths) > 1 and all(config.heads[level] == 1 for level in attention_levels):
        head_widths = {None}  # one head at every level
    resblocks_without_attention = config.resample == "resblock" and 0 in config.depth
    if len(head_widths) > 1 or config.mid_depth == 0 or config.vector_width or resblocks_without_attention:
        reason = "heads of different widths" if len(head_widths) > 1 else "such blocks"
        raise DaguerreError(f"A UNet without cross-attention and with {reason} cannot be saved in the diffusers folder layout.")
    resample = {"conv": "conv", "resblock": "resnet"}[config.resample]
    fields = {
        "_class_name": "UNet2DModel",
        "attention_head_dim": head_widths.pop(),
        "attn_norm_num_groups": config.norm_groups,
        "down_block_types": ["AttnDownBlock2D" if depth else "DownBlock2D" for depth in config.depth],
        "downsample_type": resample,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(config.depth)],
        "upsample_type": resample,
        **_common_json(config, sample_size),
    }
    return dict(sorted(fields.items()))


def _common_json(config: UNetConfig, sample_size: int) -> Json:
    return {
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "center_input_sample": False,
        "downsample_padding": config.downsample_padding,
        "dropout": config.dropout,
        "flip_sin_to_cos": config.time_cos_first,
        "freq_shift": config.time_frequency_shift,
        "in_channels": config.in_channels,
        "layers_per_block": config.blocks,
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": config.classes,
        "out_channels": config.out_channels,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "sample_size": sample_size,
    }
