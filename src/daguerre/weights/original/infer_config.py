"""Configs of networks from the shapes of their tensors, under our names.

What shapes cannot tell is left at a value to be replaced: the heads of a UNet (see `families`), and the number of norm groups, which
is 32 in every published network.
"""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKLConfig
from daguerre.models.clip import CLIPTextConfig
from daguerre.models.ldm_bert import LDMBertConfig
from daguerre.models.spatial_rescaler import SpatialRescalerConfig
from daguerre.models.transformer_prior import TransformerPriorConfig
from daguerre.models.unet import UNetConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModelConfig

Shapes = Mapping[str, Tensor]


def unet_from_shapes(tensors: Shapes) -> UNetConfig:
    """The config of a UNet, one head everywhere.

    Raises:
        DaguerreError: a tensor that decides is missing.
    """
    levels, blocks = max(1, _count(tensors, "down_blocks.")), _count(tensors, "down_blocks.0.resnets.")
    channels = tuple(_side(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels))
    places = [f"down_blocks.{i}.attentions.0" for i in range(levels)] + ["mid_block.attentions.0"]
    *depth, mid_depth = (_depth(tensors, place) for place in places)
    # All spatial transformers share one context, so any of them tells.
    attended = next((place for place in places if f"{place}.transformer_blocks.0.attn2.to_k.weight" in tensors), None)
    context = _side(tensors, f"{attended}.transformer_blocks.0.attn2.to_k.weight", 1) if attended else None
    cross_only = [
        i
        for i, width in enumerate(channels)
        if (name := f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_k.weight") in tensors
        and width != _side(tensors, name, 1) == context
    ]
    return UNetConfig(
        in_channels=_side(tensors, "conv_in.weight", 1),
        out_channels=_side(tensors, "conv_out.weight", 0),
        channels=channels,
        blocks=blocks,
        depth=tuple(depth),
        mid_depth=mid_depth,
        heads=(1,) * levels,
        context_width=context,
        vector_width=_side(tensors, name, 1) if (name := "add_embedding.linear_1.weight") in tensors else None,
        classes=_side(tensors, name, 0) if (name := "class_embedding.weight") in tensors else None,
        linear_projection=bool(attended) and len(_shape(tensors, f"{attended}.proj_in.weight")) == 2,
        cross_only_levels=tuple(cross_only),
        scale_shift=_side(tensors, "down_blocks.0.resnets.0.time_emb_proj.weight", 0) == 2 * channels[0],
        resample="resblock" if "down_blocks.0.downsamplers.0.conv1.weight" in tensors else "conv",
    )


def autoencoder_from_shapes(tensors: Shapes, scaling_factor: float) -> AutoencoderKLConfig:
    """The config of a KL autoencoder. Raises DaguerreError where a tensor that decides is missing."""
    levels = _count(tensors, "encoder.down_blocks.")
    return AutoencoderKLConfig(
        in_channels=_side(tensors, "encoder.conv_in.weight", 1),
        out_channels=_side(tensors, "decoder.conv_out.weight", 0),
        latent_channels=_side(tensors, "decoder.conv_in.weight", 1),
        channels=tuple(_side(tensors, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)),
        blocks=_count(tensors, "encoder.down_blocks.0.resnets."),
        attention_levels=tuple(i for i in range(levels) if f"encoder.down_blocks.{i}.attentions.0.to_q.weight" in tensors),
        mid_attention="encoder.mid_block.attentions.0.to_q.weight" in tensors,
        quant_conv="quant_conv.weight" in tensors,
        post_quant_conv="post_quant_conv.weight" in tensors,
        scaling_factor=scaling_factor,
    )


def vq_from_shapes(tensors: Shapes) -> VQModelConfig:
    """The config of a vector-quantised autoencoder. Raises DaguerreError where a tensor that decides is missing."""
    rest = autoencoder_from_shapes(tensors, 1.0)
    drawn = "quantize.proj.weight" in tensors
    codes, width = _matrix(tensors, "quantize.embed.weight" if drawn else "quantize.embedding.weight")
    return VQModelConfig(
        quantizer=QuantizerConfig(codes=codes, width=width, kind="gumbel" if drawn else "nearest"),
        in_channels=rest.in_channels,
        out_channels=rest.out_channels,
        latent_channels=rest.latent_channels,
        channels=rest.channels,
        blocks=rest.blocks,
        attention_levels=rest.attention_levels,
        mid_attention=rest.mid_attention,
    )


PRIOR_HEADS = {(24, 1024): 16, (40, 1408): 16, (36, 1536): 16, (48, 1536): 24}  # (layers, width) of the published transformers


def prior_from_shapes(tensors: Shapes) -> TransformerPriorConfig:
    """The config of a transformer over codes; heads as published, else of width 64. Its window is 16×16 where it has places for that."""
    tokens, width = _matrix(tensors, "tok_emb.weight")
    codes, length, layers = _side(tensors, "head.weight", 0), _side(tensors, "pos_emb", 1), _count(tensors, "blocks.")
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
    """The config of a CLIP text tower. Published ones have heads of width 64; OpenAI's the quick GELU, OpenCLIP's the exact one."""
    vocab, width = _matrix(tensors, "text_model.embeddings.token_embedding.weight")
    return CLIPTextConfig(
        vocab_size=vocab,
        length=_side(tensors, "text_model.embeddings.position_embedding.weight", 0),
        width=width,
        layers=_count(tensors, "text_model.encoder.layers."),
        heads=max(1, width // 64),
        mlp_width=_side(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        activation="gelu" if open_clip or width != 768 else "quick_gelu",
        projection=_side(tensors, name, 0) if (name := "text_projection.weight") in tensors else None,
        eos=vocab - 1,
    )


def ldm_text_from_shapes(tensors: Shapes) -> LDMBertConfig:
    """The config of latent diffusion's own text tower; its heads have width 64."""
    vocab, width = _matrix(tensors, "model.embed_tokens.weight")
    return LDMBertConfig(
        vocab_size=vocab,
        length=_side(tensors, "model.embed_positions.weight", 0),
        width=width,
        layers=_count(tensors, "model.layers."),
        heads=_side(tensors, "model.layers.0.self_attn.q_proj.weight", 0) // 64,
        mlp_width=_side(tensors, "model.layers.0.fc1.weight", 0),
    )


def rescaler_from_shapes(tensors: Shapes, stages: int) -> SpatialRescalerConfig:
    """The config of what makes maps of classes small; `stages` is the autoencoder's, so that they have the latent's size."""
    channels, classes = _matrix(tensors, "channel_mapper.weight")
    return SpatialRescalerConfig(classes, channels, stages, bias="channel_mapper.bias" in tensors)


def count_parameters(tensors: Shapes) -> int:
    """How many numbers there are."""
    return sum(tensor.numel() for tensor in tensors.values())


def _shape(tensors: Shapes, name: str) -> torch.Size:
    if name not in tensors:
        raise DaguerreError(f"The network's {name!r} is missing, and without it its architecture cannot be told; the file is not whole.")
    return tensors[name].shape


def _side(tensors: Shapes, name: str, axis: int) -> int:
    shape = _shape(tensors, name)
    if len(shape) <= axis or 0 in shape:
        raise DaguerreError(f"The network's {name!r} has the shape {list(shape)}, from which its architecture cannot be told.")
    return shape[axis]


def _matrix(tensors: Shapes, name: str) -> tuple[int, int]:
    return _side(tensors, name, 0), _side(tensors, name, 1)


def _count(tensors: Shapes, prefix: str) -> int:
    """How many numbered entries follow a prefix."""
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


def _depth(tensors: Shapes, place: str) -> int:
    """Transformer blocks at a place; 1 for plain self-attention, 0 where there is none."""
    return _count(tensors, f"{place}.transformer_blocks.") or int(f"{place}.to_q.weight" in tensors)
