"""Tiny checkpoints of each family under their published names, built from the networks here and the key tables."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.ldm_bert import LDMBert, LDMBertConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.weights.original.key_map import (
    KeyTable,
    UNetLayout,
    autoencoder_rules,
    gpt_rules,
    ldm_text_rules,
    open_clip_rules,
    unet_rules,
)

UNET = UNetConfig(channels=(64, 128), blocks=1, depth=(1, 1), heads=(8, 8), context_width=64)
AUTOENCODER = AutoencoderKLConfig(channels=(32, 64), blocks=1)
VQ_MODEL = VQModelConfig(QuantizerConfig(codes=16, width=3), latent_channels=3, channels=(32, 64), blocks=1, attention_levels=())
CLIP = CLIPTextConfig(vocab_size=49408, width=64, layers=2, heads=1, mlp_width=128, activation="gelu")
OPEN_CLIP = replace(CLIP, layers=3, projection=64)

SD1 = UNET
SD2 = replace(UNET, heads=(1, 2), linear_projection=True)
SDXL = replace(SD2, depth=(0, 2), mid_depth=2, context_width=128, vector_width=64 + 6 * 256)
REFINER = replace(SD2, depth=(0, 2), mid_depth=2, vector_width=64 + 5 * 256)


def random(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """The tensors of a network, none of them zero, so that a swapped or missing one is noticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network.state_dict()


def condition(network: nn.Module, prefix: str = "cond_stage_model.") -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in random(network, 6).items()}


def ldm_text(config: LDMBertConfig, prefix: str = "cond_stage_model.transformer.") -> dict[str, Tensor]:
    return to_original(random(LDMBert(config), 7), KeyTable(ldm_text_rules(config.layers)), prefix)


def unet(config: UNetConfig, prefix: str = "model.diffusion_model.") -> dict[str, Tensor]:
    return to_original(random(UNet(config), 1), KeyTable(unet_rules(UNetLayout.of(config))), prefix)


def autoencoder(config: AutoencoderKLConfig = AUTOENCODER, prefix: str = "first_stage_model.") -> dict[str, Tensor]:
    table = KeyTable(autoencoder_rules(len(config.channels), config.blocks + 1))
    return to_original(random(AutoencoderKL(config), 2), table, prefix)


def gpt(config: TransformerPriorConfig, prefix: str = "transformer.") -> dict[str, Tensor]:
    tensors = to_original(random(TransformerPrior(config), 8), KeyTable(gpt_rules(config.layers)), prefix)
    return tensors | {f"{prefix}blocks.{i}.attn.mask": torch.ones(1, 1, 2, 2) for i in range(config.layers)}


def vq_model(prefix: str = "first_stage_model.", config: VQModelConfig = VQ_MODEL) -> dict[str, Tensor]:
    return to_original(random(VQModel(config), 5), KeyTable(autoencoder_rules(2, 2)), prefix)


def clip(config: CLIPTextConfig = CLIP, prefix: str = "cond_stage_model.transformer.") -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in random(CLIPText(config), 3).items()}


def open_clip(config: CLIPTextConfig = OPEN_CLIP, prefix: str = "cond_stage_model.model.") -> dict[str, Tensor]:
    tensors = to_original(random(CLIPText(config), 4), KeyTable(open_clip_rules(config.layers)), prefix)
    return tensors | {f"{prefix}logit_scale": torch.tensor(4.6)}


def to_original(tensors: Mapping[str, Tensor], table: KeyTable, prefix: str) -> dict[str, Tensor]:
    original, unmatched = table.to_original(tensors)
    assert not unmatched
    return {prefix + name: tensor.clone() for name, tensor in original.items()}


def sd1(config: UNetConfig = SD1) -> dict[str, Tensor]:
    return unet(config) | autoencoder() | clip()


def sd2(config: UNetConfig = SD2) -> dict[str, Tensor]:
    return unet(config) | autoencoder() | open_clip()


def sdxl(config: UNetConfig = SDXL) -> dict[str, Tensor]:
    return (
        unet(config)
        | autoencoder()
        | clip(prefix="conditioner.embedders.0.transformer.")
        | open_clip(prefix="conditioner.embedders.1.model.")
    )


def refiner() -> dict[str, Tensor]:
    return unet(REFINER) | autoencoder() | open_clip(prefix="conditioner.embedders.0.model.")


def with_ema(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with an EMA of the UNet, which has other values and the names that LitEma uses."""
    ema = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith("model.diffusion_model.")
    }
    return {**tensors, **ema, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata or None)
    return path


def assert_file_equals(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file holds exactly these tensors, byte for byte."""
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
