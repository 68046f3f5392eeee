"""The field's `config.json` files as our frozen configs, and back.

An option that our networks do not have is an error that names it, never a silent difference; options that only steer how another
program computes (`upcast_attention`, `force_upcast`) are left alone. Values that a file leaves out have the defaults which the
programs that write these files give them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.models.clip import Activation, CLIPTextConfig
from daguerre.models.ldm_bert import LDMBertConfig
from daguerre.models.unet import UNetConfig

Json = dict[str, Any]
K = TypeVar("K")
V = TypeVar("V")

PREDICTION_TYPES: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
BETA_SCHEDULES: dict[str, Literal["linear", "scaled_linear", "cosine"]] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}

# Options of a UNet2DConditionModel that have to stand where they stand in every Stable Diffusion.
UNET_FIXED: Mapping[str, tuple[object, ...]] = {
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
PLAIN_FIXED: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "mid_block_scale_factor": (1,),
    "time_embedding_type": ("positional",),
}
AUTOENCODER_FIXED: Mapping[str, tuple[object, ...]] = {"act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,)}


def unet_config(given: Mapping[str, Any], where: object) -> UNetConfig:
    """Read the config of a `UNet2DConditionModel`. Its `attention_head_dim` counts heads, whatever it is called.

    Raises:
        DaguerreError: an option that our UNet does not have.
    """
    check_fixed(given, UNET_FIXED, where)
    channels = tuple(given.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(channels)
    kinds = given.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    ways_up = given.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    attends = [choose_class(kind, {"CrossAttnDownBlock2D": True, "DownBlock2D": False}, "down block", where) for kind in kinds]
    mirror = [choose_class(kind, {"CrossAttnUpBlock2D": True, "UpBlock2D": False}, "up block", where) for kind in reversed(ways_up)]
    if attends != mirror:
        raise DaguerreError(f"'{where}' attends at other levels on the way up than on the way down, which our UNet does not.")
    depths = _each(given.get("transformer_layers_per_block", 1), levels)
    cross_only = _each(given.get("only_cross_attention", False), levels)
    addition = choose_class(given.get("addition_embed_type"), {None: False, "text_time": True}, "addition_embed_type", where)
    return UNetConfig(
        in_channels=given.get("in_channels", 4),
        out_channels=given.get("out_channels", 4),
        channels=channels,
        blocks=_same(given.get("layers_per_block", 2), "layers_per_block", where),
        depth=tuple(depth if attending else 0 for depth, attending in zip(depths, attends, strict=True)),
        mid_depth=depths[-1],
        heads=_each(given.get("attention_head_dim", 8), levels),
        context_width=_same(given.get("cross_attention_dim", 1280), "cross_attention_dim", where),
        vector_width=given["projection_class_embeddings_input_dim"] if addition else None,
        classes=given.get("num_class_embeds"),
        linear_projection=given.get("use_linear_projection", False),
        cross_only_levels=tuple(level for level, only in enumerate(cross_only) if only),
        scale_shift=choose_class(
            given.get("resnet_time_scale_shift", "default"), {"default": False, "scale_shift": True}, "time scale", where
        ),
        downsample_padding=given.get("downsample_padding", 1),
        dropout=given.get("dropout", 0.0),
        norm_groups=given.get("norm_num_groups", 32),
        norm_eps=given.get("norm_eps", 1e-5),
        time_cos_first=given.get("flip_sin_to_cos", True),
        time_frequency_shift=given.get("freq_shift", 0),
    )


def plain_unet_config(given: Mapping[str, Any], shape: UNetConfig, where: object) -> UNetConfig:
    """The config of a `UNet2DModel`, which hears no words, of this shape. Its `attention_head_dim` is a head's width.

    Raises:
        DaguerreError: an option that our UNet does not have.
    """
    check_fixed(given, PLAIN_FIXED, where)
    width = given.get("attention_head_dim", 8)
    return replace(
        shape,
        heads=tuple(channels // width if width else 1 for channels in shape.channels),
        downsample_padding=given.get("downsample_padding", 1),
        dropout=given.get("dropout", 0.0),
        norm_groups=given.get("norm_num_groups", 32),
        norm_eps=given.get("norm_eps", 1e-5),
        time_cos_first=given.get("flip_sin_to_cos", True),
        time_frequency_shift=given.get("freq_shift", 0),
    )


def unet_json(config: UNetConfig, sample_size: int) -> Json:
    """The config of a `UNet2DConditionModel`, or of a `UNet2DModel` where it hears no words; `sample_size` is the side of its own latents.

    Raises:
        DaguerreError: the layout has no words for this network.
    """
    if config.context_width is None:
        return plain_unet_json(config, sample_size)
    wordless = {
        "residual blocks that resample": config.resample != "conv",
        "no attention in the middle": config.mid_depth == 0,
        "another depth in the middle than at the last level": config.depth[-1] not in (0, config.mid_depth),
    }
    for reason in (reason for reason, holds in wordless.items() if holds):
        raise DaguerreError(f"A UNet with {reason} cannot be written in the folder layout of Stable Diffusion.")
    depths = [depth or 1 for depth in config.depth[:-1]] + [config.mid_depth]
    cross_only = [level in config.cross_only_levels for level in range(len(config.channels))]
    vector = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": config.vector_width,
    }
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": list(config.heads),
        "block_out_channels": list(config.channels),
        "center_input_sample": False,
        "cross_attention_dim": config.context_width,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.depth],
        "downsample_padding": config.downsample_padding,
        "dropout": config.dropout,
        "flip_sin_to_cos": config.time_cos_first,
        "freq_shift": config.time_frequency_shift,
        "in_channels": config.in_channels,
        "layers_per_block": config.blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": config.classes,
        "only_cross_attention": cross_only if any(cross_only) else False,
        "out_channels": config.out_channels,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "sample_size": sample_size,
        "transformer_layers_per_block": depths if set(depths) != {1} else 1,
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(config.depth)],
        "use_linear_projection": config.linear_projection,
        **(vector if config.vector_width else {}),
    }


def plain_unet_json(config: UNetConfig, sample_size: int) -> Json:
    """The config of a `UNet2DModel`. Raises DaguerreError where that has no words for this network."""
    attended = [*(level for level, depth in enumerate(config.depth) if depth), len(config.channels) - 1]  # and the middle
    widths = {config.channels[level] // config.heads[level] for level in attended}
    resampling_alone = config.resample == "resblock" and 0 in config.depth
    if len(widths) > 1 or config.mid_depth == 0 or config.vector_width or resampling_alone:
        reason = "heads of different widths" if len(widths) > 1 else "such blocks"
        raise DaguerreError(f"A UNet without words and with {reason} cannot be written in the folder layout of latent diffusion.")
    resample = {"conv": "conv", "resblock": "resnet"}[config.resample]
    return {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": widths.pop(),
        "attn_norm_num_groups": config.norm_groups,
        "block_out_channels": list(config.channels),
        "center_input_sample": False,
        "down_block_types": ["AttnDownBlock2D" if depth else "DownBlock2D" for depth in config.depth],
        "downsample_padding": config.downsample_padding,
        "downsample_type": resample,
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
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(config.depth)],
        "upsample_type": resample,
    }


def autoencoder_config(given: Mapping[str, Any], where: object) -> AutoencoderKLConfig:
    """Read the config of an `AutoencoderKL`.

    Raises:
        DaguerreError: an option that our autoencoder does not have.
    """
    check_fixed(given, AUTOENCODER_FIXED, where)
    channels = tuple(given.get("block_out_channels", (64,)))
    kinds = given.get("down_block_types", ("DownEncoderBlock2D",) * len(channels))
    attends = [choose_class(kind, {"AttnDownEncoderBlock2D": True, "DownEncoderBlock2D": False}, "down block", where) for kind in kinds]
    return AutoencoderKLConfig(
        in_channels=given.get("in_channels", 3),
        out_channels=given.get("out_channels", 3),
        latent_channels=given.get("latent_channels", 4),
        channels=channels,
        blocks=given.get("layers_per_block", 1),
        attention_levels=tuple(level for level, attending in enumerate(attends) if attending),
        mid_attention=given.get("mid_block_add_attention", True),
        norm_groups=given.get("norm_num_groups", 32),
        quant_conv=given.get("use_quant_conv", True),
        post_quant_conv=given.get("use_post_quant_conv", True),
        scaling_factor=given.get("scaling_factor", 0.18215),
        shift_factor=given.get("shift_factor") or 0.0,
    )


def autoencoder_json(config: AutoencoderKLConfig, sample_size: int) -> Json:
    """The config of an `AutoencoderKL`; `sample_size` is the side of its own pictures."""
    attends = [level in config.attention_levels for level in range(len(config.channels))]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["AttnDownEncoderBlock2D" if attending else "DownEncoderBlock2D" for attending in attends],
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": sample_size,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor or None,
        "up_block_types": ["AttnUpDecoderBlock2D" if attending else "UpDecoderBlock2D" for attending in reversed(attends)],
        "use_post_quant_conv": config.post_quant_conv,
        "use_quant_conv": config.quant_conv,
    }


def text_config(given: Mapping[str, Any], where: object, *, projected: bool = False) -> CLIPTextConfig:
    """Read the config of a `CLIPTextModel`, or of a `CLIPTextModelWithProjection` where `projected`.

    Raises:
        DaguerreError: an activation that our text tower does not have.
    """
    vocab_size, eos = given.get("vocab_size", 49408), given.get("eos_token_id", 49407)
    return CLIPTextConfig(
        vocab_size=vocab_size,
        length=given.get("max_position_embeddings", 77),
        width=given.get("hidden_size", 512),
        layers=given.get("num_hidden_layers", 12),
        heads=given.get("num_attention_heads", 8),
        mlp_width=given.get("intermediate_size", 2048),
        activation=choose_class(given.get("hidden_act", "quick_gelu"), ACTIVATIONS, "activation", where),
        projection=given.get("projection_dim", 512) if projected else None,
        eps=given.get("layer_norm_eps", 1e-5),
        eos=vocab_size - 1 if eos == 2 else eos,  # 2 is a slip in published files, and means the last id
    )


def text_json(config: CLIPTextConfig, *, bos: int, pad: int) -> Json:
    """The config of a `CLIPTextModel`, or of one with projection where `config` has it; `bos` and `pad` are the tokenizer's ids."""
    return {
        "architectures": ["CLIPTextModel" if config.projection is None else "CLIPTextModelWithProjection"],
        "bos_token_id": bos,
        "dtype": "float32",  # what to compute in, whatever the file's precision; transformers would take that, and diffusers fail
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


def ldm_text_json(config: LDMBertConfig, pad: int) -> Json:
    """The config of latent diffusion's own text tower; `pad` is the tokenizer's id."""
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


def schedule_config(given: Mapping[str, Any], where: object) -> tuple[ScheduleConfig, Prediction]:
    """Read how a model was trained out of any `scheduler_config.json`: its noise schedule, and what it predicts.

    Raises:
        DaguerreError: a schedule or a prediction that there is not here.
    """
    check_fixed(given, {"trained_betas": (None,)}, where)
    config = ScheduleConfig(
        kind=choose_class(given.get("beta_schedule", "linear"), BETA_SCHEDULES, "beta_schedule", where),
        beta_start=given.get("beta_start", 0.0001),
        beta_end=given.get("beta_end", 0.02),
        timesteps=given.get("num_train_timesteps", 1000),
        zero_terminal_snr=given.get("rescale_betas_zero_snr", False),
    )
    return config, choose_class(given.get("prediction_type", "epsilon"), PREDICTION_TYPES, "prediction_type", where)


def schedule_json(config: ScheduleConfig, prediction: Prediction) -> Json:
    """The config of a `DDIMScheduler` that walks as our `euler` does with trailing spacing: down to σ = 0, nothing clipped."""
    names = {ours: theirs for theirs, ours in (*PREDICTION_TYPES.items(), *BETA_SCHEDULES.items())}
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": config.beta_end,
        "beta_schedule": names[config.kind],
        "beta_start": config.beta_start,
        "clip_sample": False,
        "num_train_timesteps": config.timesteps,
        "prediction_type": names[prediction],
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "set_alpha_to_one": True,
        "steps_offset": 1,  # has no effect on trailing spacing; diffusers warns of any other number
        "timestep_spacing": "trailing",
    }


def low_resolution_json(config: ScheduleConfig) -> Json:
    """The config of a `DDPMScheduler` that noises an upscaler's small picture."""
    return {**schedule_json(config, "epsilon"), "_class_name": "DDPMScheduler", "clip_sample": True, "timestep_spacing": "leading"}


def choose_class(name: K, table: Mapping[K, V], what: str, where: object) -> V:
    """The value of a name out of a table. Raises DaguerreError that lists the names, where it is in none of them."""
    if name not in table:
        raise DaguerreError(f"'{where}' asks for the {what} {name!r}; there are {', '.join(map(repr, table))}.")
    return table[name]


def check_fixed(given: Mapping[str, Any], fixed: Mapping[str, tuple[object, ...]], where: object) -> None:
    """Raise DaguerreError for an option that is set to anything but what our networks do; the first of each is the default."""
    for name, allowed in fixed.items():
        if given.get(name, allowed[0]) not in allowed:
            raise DaguerreError(f"'{where}' sets {name} to {given[name]!r}; only {allowed[0]!r} is supported.")


def _each(value: Any, levels: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * levels


def _same(value: Any, name: str, where: object) -> int:
    values = set(_each(value, 1))
    if len(values) > 1:
        raise DaguerreError(f"'{where}' gives each level its own {name}, {value}; only one for all is supported.")
    return cast("int", values.pop())
