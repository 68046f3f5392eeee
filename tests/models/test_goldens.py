"""Tiny models under their published names, with the outputs of the original implementations in float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.weights.keys import Table, UNetLayout, autoencoder_rules, unet_rules

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, inputs and outputs, and the configuration in the original's terms."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
        config = json.loads(file.metadata()["config"])
    io = {key.removeprefix("io."): tensor for key, tensor in tensors.items() if key.startswith("io.")}
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("io.")}, io, config


def named(weights: dict[str, Tensor], prefix: str, table: Table) -> dict[str, Tensor]:
    ours, unmatched = table.to_ours({key.removeprefix(prefix): tensor for key, tensor in weights.items()})
    assert not unmatched
    return ours


def unet_config(original: dict[str, Any]) -> UNetConfig:
    channels = tuple(original["model_channels"] * m for m in original["channel_mult"])
    depth = tuple(int(2**level in original["attention_resolutions"]) for level in range(len(channels)))
    heads = tuple(original.get("num_heads") or width // original["num_head_channels"] for width in channels)
    return UNetConfig(
        channels=channels, blocks=original["num_res_blocks"], depth=depth, heads=heads, context_width=original.get("context_dim")
    )


@pytest.mark.parametrize("name", ["sd1_unet_tiny", "ldm_unconditional_unet_tiny"])
def test_the_unet_gives_the_original_output(name: str):
    weights, io, original = read(name)
    config = unet_config(original)
    unet = UNet(config)
    unet.load_state_dict(named(weights, "model.diffusion_model.", Table(unet_rules(UNetLayout.of(config)))), strict=True)
    with torch.no_grad():
        out = unet(io["x"], io["t"], Conditioning(context=io.get("context")))
    torch.testing.assert_close(out, io["out"], rtol=0, atol=1e-5)


def test_the_autoencoder_gives_the_original_moments_and_picture():
    weights, io, original = read("ldm_kl_autoencoder_tiny")
    shape = original["ddconfig"]
    sides = [shape["resolution"] // 2**level for level in range(len(shape["ch_mult"]))]
    config = AutoencoderKLConfig(
        latent_channels=original["embed_dim"],
        channels=tuple(shape["ch"] * m for m in shape["ch_mult"]),
        blocks=shape["num_res_blocks"],
        attention_levels=tuple(level for level, side in enumerate(sides) if side in shape["attn_resolutions"]),
        scaling_factor=1.0,
    )
    autoencoder = AutoencoderKL(config)
    table = Table(autoencoder_rules(len(config.channels), config.blocks + 1))
    autoencoder.load_state_dict(named(weights, "first_stage_model.", table), strict=True)
    with torch.no_grad():
        posterior = autoencoder.moments(io["x"])
        torch.testing.assert_close(torch.cat([posterior.mean, posterior.logvar], dim=1), io["moments"], rtol=0, atol=1e-5)
        torch.testing.assert_close(autoencoder.decode(io["z"]), io["decoded"], rtol=0, atol=1e-5)


def test_the_discriminator_gives_the_original_logits():
    weights, io, original = read("taming_patchgan_tiny")
    critic = PatchDiscriminator(PatchDiscriminatorConfig(original["input_nc"], original["ndf"], original["n_layers"])).eval()
    critic.load_state_dict({key.removeprefix("loss.discriminator."): tensor for key, tensor in weights.items()}, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(critic(io["x"]), io["logits"], rtol=0, atol=1e-5)
