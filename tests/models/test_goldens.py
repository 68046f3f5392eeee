"""Tiny models under their published names, with the outputs of the original implementations in float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.weights.original.key_map import KeyTable, UNetLayout, autoencoder_rules, unet_rules
from tests.tolerance import NETWORK_TERMS, assert_rounded

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, inputs and outputs, and the configuration in the original's terms."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
        config = json.loads(file.metadata()["config"])
    io = {key.removeprefix("io."): tensor for key, tensor in tensors.items() if key.startswith("io.")}
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("io.")}, io, config


def named(weights: dict[str, Tensor], prefix: str, table: KeyTable) -> dict[str, Tensor]:
    canonical, unmatched = table.to_canonical({key.removeprefix(prefix): tensor for key, tensor in weights.items()})
    assert not unmatched
    return canonical


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
    unet.load_state_dict(named(weights, "model.diffusion_model.", KeyTable(unet_rules(UNetLayout.of(config)))), strict=True)
    with torch.no_grad():
        out = unet(io["x"], io["t"], Conditioning(context=io.get("context")))
    torch.testing.assert_close(out, io["out"], rtol=0, atol=1e-5)


def test_the_autoencoder_gives_the_original_posterior_and_image():
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
    table = KeyTable(autoencoder_rules(len(config.channels), config.blocks + 1))
    autoencoder.load_state_dict(named(weights, "first_stage_model.", table), strict=True)
    with torch.no_grad():
        posterior = autoencoder.posterior(io["x"])
        torch.testing.assert_close(torch.cat([posterior.mean, posterior.logvar], dim=1), io["moments"], rtol=0, atol=1e-5)
        torch.testing.assert_close(autoencoder.decode(io["z"]), io["decoded"], rtol=0, atol=1e-5)


def test_the_discriminator_gives_the_original_logits():
    weights, io, original = read("taming_patchgan_tiny")
    network = discriminator(weights, original).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(io["x"]), io["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_discriminator_gradients_equal_the_formula(training: bool):
    """The published network written out with plain functions, which gives the original's logits, too."""
    weights, io, original = read("taming_patchgan_tiny")
    network = discriminator(weights, original).train(training)
    leaves = {key.removeprefix("loss.discriminator.main."): tensor.clone() for key, tensor in weights.items()}
    for key in (trained := [key for key in leaves if key.endswith((".weight", ".bias"))]):
        leaves[key].requires_grad_()
    x, y = (io["x"].clone().requires_grad_() for _ in range(2))
    logits, expected = network(x), patchgan(leaves, y, training)
    if not training:
        torch.testing.assert_close(expected, io["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    toward = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    (logits * toward).mean().backward()
    (expected * toward).mean().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert_rounded(x.grad, y.grad, NETWORK_TERMS)
    parameters = dict(network.main.named_parameters())
    assert parameters.keys() == set(trained)
    for key in trained:
        torch.testing.assert_close(parameters[key].grad, leaves[key].grad, rtol=0, atol=1e-5, msg=lambda m, n=key: f"{n}: {m}")


def discriminator(weights: dict[str, Tensor], original: dict[str, Any]) -> PatchDiscriminator:
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(original["input_nc"], original["ndf"], original["n_layers"]))
    discriminator.load_state_dict({key.removeprefix("loss.discriminator."): tensor for key, tensor in weights.items()}, strict=True)
    return discriminator


def patchgan(w: dict[str, Tensor], x: Tensor, training: bool) -> Tensor:
    """Two strided convolutions and two more, by the numbers of the published layers."""
    x = F.leaky_relu(F.conv2d(x, w["0.weight"], w["0.bias"], stride=2, padding=1), 0.2)
    for convolution, norm, stride in (("2", "3", 2), ("5", "6", 1)):
        x = F.conv2d(x, w[f"{convolution}.weight"], stride=stride, padding=1)
        mean, variance = (
            (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if training else (w[f"{norm}.running_mean"], w[f"{norm}.running_var"])
        )
        x = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + 1e-5).sqrt()
        x = F.leaky_relu(x * w[f"{norm}.weight"].view(1, -1, 1, 1) + w[f"{norm}.bias"].view(1, -1, 1, 1), 0.2)
    return F.conv2d(x, w["8.weight"], w["8.bias"], padding=1)
