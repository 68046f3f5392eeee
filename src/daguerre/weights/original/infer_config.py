"""Infer the configs of networks from the shapes of their tensors, under canonical names.

Two fields of a UNet are not determined by shapes: the heads are set to 1 (see `families.heads_of`), and the number of norm groups to
32, as in every published network.
"""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.models.clip import CLIPTextConfig
from daguerre.models.ldm_bert import LDMBertConfig
from daguerre.models.patch_discriminator import PatchDiscriminatorConfig
from daguerre.models.spatial_rescaler import SpatialRescalerConfig
from daguerre.models.transformer_prior import TransformerPriorConfig
from daguerre.models.unet import UNetConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModelConfig

Shapes = Mapping[str, Tensor]
PRIOR_HEADS = {(24, 1024): 16, (40, 1408): 16, (36, 1536): 16, (48, 1536): 24}  # (layers, width) of the published transformers


def unet_from_shapes(tensors: Shapes) -> UNetConfig:
    """The config of a UNet, with one head everywhere.

    Raises:
        DaguerreError: a tensor that determines the config is missing.
    """
    levels, blocks = max(1, _count(tensors, "down_blocks.")), _count(tensors, "down_blocks.0.resnets.")
    channels = tuple(_dim(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels))
    paths = [f"down_blocks.{i}.attentions.0" for i in range(levels)] + ["mid_block.attentions.0"]
    *depth, mid_depth = (_depth(tensors, path) for path in paths)
    # All transformer blocks have the same context width, so any one of them determines it.
    attention = next((path for path in paths if f"{path}.transformer_blocks.0.attn2.to_k.weight" in tensors), None)
    context_width = _dim(tensors, f"{attention}.transformer_blocks.0.attn2.to_k.weight", 1) if attention else None
    cross_only = [
        i
        for i, width in enumerate(channels)
        if (name := f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_k.weight") in tensors
        and width != _dim(tensors, name, 1) == context_width
    ]
    return UNetConfig(
        in_channels=_dim(tensors, "conv_in.weight", 1),
        out_channels=_dim(tensors, "conv_out.weight", 0),
        channels=channels,
        blocks=blocks,
        depth=tuple(depth),
        mid_depth=mid_depth,
        heads=(1,) * levels,
        context_width=context_width,
        vector_width=_dim(tensors, name, 1) if (name := "add_embedding.linear_1.weight") in tensors else None,
        classes=_dim(tensors, name, 0) if (name := "class_embedding.weight") in tensors else None,
        linear_projection=bool(attention) and len(_shape(tensors, f"{attention}.proj_in.weight")) == 2,
        cross_only_levels=tuple(cross_only),
        scale_shift=_dim(tensors, "down_blocks.0.resnets.0.time_emb_proj.weight", 0) == 2 * channels[0],
        resample="resblock" if "down_blocks.0.downsamplers.0.conv1.weight" in tensors else "conv",
    )


def first_stage_from_shapes(tensors: Shapes, scaling_factor: float) -> AutoencoderKLConfig | VQModelConfig:
    """The config of a KL or VQ autoencoder; `scaling_factor` is for KL, as VQ latents are not scaled."""
    quantized = any(name.startswith("quantize.") for name in tensors)
    return vq_from_shapes(tensors) if quantized else autoencoder_from_shapes(tensors, scaling_factor)


def autoencoder_from_shapes(tensors: Shapes, scaling_factor: float) -> AutoencoderKLConfig:
    """The config of a KL autoencoder. Raises DaguerreError if a tensor that determines it is missing."""
    levels = _count(tensors, "encoder.down_blocks.")
    return AutoencoderKLConfig(
        in_channels=_dim(tensors, "encoder.conv_in.weight", 1),
        out_channels=_dim(tensors, "decoder.conv_out.weight", 0),
        latent_channels=_dim(tensors, "decoder.conv_in.weight", 1),
        channels=tuple(_dim(tensors, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)),
        blocks=_count(tensors, "encoder.down_blocks.0.resnets."),
        attention_levels=tuple(i for i in range(levels) if f"encoder.down_blocks.{i}.attentions.0.to_q.weight" in tensors),
        mid_attention="encoder.mid_block.attentions.0.to_q.weight" in tensors,
        quant_conv="quant_conv.weight" in tensors,
        post_quant_conv="post_quant_conv.weight" in tensors,
        scaling_factor=scaling_factor,
    )


def vq_from_shapes(tensors: Shapes) -> VQModelConfig:
    """The config of a VQ autoencoder. Raises DaguerreError if a tensor that determines it is missing."""
    rest = autoencoder_from_shapes(tensors, 1.0)
    gumbel = "quantize.proj.weight" in tensors
    codes, width = _matrix_shape(tensors, "quantize.embed.weight" if gumbel else "quantize.embedding.weight")
    return VQModelConfig(
        quantizer=QuantizerConfig(codes=codes, width=width, kind="gumbel" if gumbel else "nearest"),
        in_channels=rest.in_channels,
        out_channels=rest.out_channels,
        latent_channels=rest.latent_channels,
        channels=rest.channels,
        blocks=rest.blocks,
        attention_levels=rest.attention_levels,
        mid_attention=rest.mid_attention,
    )


def prior_from_shapes(tensors: Shapes) -> TransformerPriorConfig:
    """The config of a transformer over codes: heads as published, otherwise of width 64; a window of 16×16 codes if its length allows."""
    tokens, width = _matrix_shape(tensors, "tok_emb.weight")
    codes, length, layers = _dim(tensors, "head.weight", 0), _dim(tensors, "pos_emb", 1), _count(tensors, "blocks.")
    side = min(16, isqrt(length))
    return TransformerPriorConfig(
        codes=codes,
        condition_codes=tokens - codes,
        length=length,
        grid=(side, side),
        width=width,
        layers=layers,
        heads=PRIOR_HEADS.get((layers, width), max(1, width // 64)),
    )


def clip_from_shapes(tensors: Shapes, *, open_clip: bool) -> CLIPTextConfig:
    """The config of a CLIP text encoder. Published ones have heads of width 64; OpenAI's use QuickGELU, OpenCLIP's GELU."""
    vocab_size, width = _matrix_shape(tensors, "text_model.embeddings.token_embedding.weight")
    return CLIPTextConfig(
        vocab_size=vocab_size,
        length=_dim(tensors, "text_model.embeddings.position_embedding.weight", 0),
        width=width,
        layers=_count(tensors, "text_model.encoder.layers."),
        heads=max(1, width // 64),
        mlp_width=_dim(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        activation="gelu" if open_clip or width != 768 else "quick_gelu",
        projection=_dim(tensors, name, 0) if (name := "text_projection.weight") in tensors else None,
        eos=vocab_size - 1,
    )


def ldm_text_from_shapes(tensors: Shapes) -> LDMBertConfig:
    """The config of latent diffusion's own text transformer, whose heads have width 64."""
    vocab_size, width = _matrix_shape(tensors, "model.embed_tokens.weight")
    return LDMBertConfig(
        vocab_size=vocab_size,
        length=_dim(tensors, "model.embed_positions.weight", 0),
        width=width,
        layers=_count(tensors, "model.layers."),
        heads=_dim(tensors, "model.layers.0.self_attn.q_proj.weight", 0) // 64,
        mlp_width=_dim(tensors, "model.layers.0.fc1.weight", 0),
    )


def rescaler_from_shapes(tensors: Shapes, stages: int) -> SpatialRescalerConfig:
    """The config of the network that downsamples class maps to the size of the latents; `stages` is the autoencoder's."""
    channels, classes = _matrix_shape(tensors, "channel_mapper.weight")
    return SpatialRescalerConfig(classes, channels, stages, bias="channel_mapper.bias" in tensors)


def discriminator_from_shapes(tensors: Shapes) -> PatchDiscriminatorConfig:
    """The config of a PatchGAN discriminator."""
    width, channels = _matrix_shape(tensors, "main.0.weight")
    return PatchDiscriminatorConfig(channels, width, sum(name.endswith("running_mean") for name in tensors))


def _shape(tensors: Shapes, name: str) -> torch.Size:
    if name not in tensors:
        raise DaguerreError(f"The network's {name!r} is missing, which determines its architecture; the file is incomplete.")
    return tensors[name].shape


def _dim(tensors: Shapes, name: str, axis: int) -> int:
    shape = _shape(tensors, name)
    if len(shape) <= axis or 0 in shape:
        raise DaguerreError(f"The network's {name!r} has the impossible shape {list(shape)}, so its architecture cannot be determined.")
    return shape[axis]


def _matrix_shape(tensors: Shapes, name: str) -> tuple[int, int]:
    return _dim(tensors, name, 0), _dim(tensors, name, 1)


def _count(tensors: Shapes, prefix: str) -> int:
    """How many numbered entries follow a prefix."""
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


def _depth(tensors: Shapes, path: str) -> int:
    """The number of transformer blocks of an attention layer; 1 for plain self-attention, 0 if there is no such layer."""
    return _count(tensors, f"{path}.transformer_blocks.") or int(f"{path}.to_q.weight" in tensors)
