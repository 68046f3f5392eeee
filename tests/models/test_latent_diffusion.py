"""The bundle is frozen, moves all its modules, and accepts parts without weights."""

from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.schedule import Schedule, ScheduleConfig
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet, UNetConfig


class Pixels:
    """The autoencoder of a model in pixel space."""

    downsample_factor = 1

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


def unconditional(prompts: Sequence[str]) -> Conditioning:
    return Conditioning()


@pytest.fixture
def pixel_model() -> LatentDiffusion:
    unet = UNet(UNetConfig(in_channels=3, out_channels=3, channels=(8,), depth=(0,), heads=(1,), context_width=None, norm_groups=4))
    return LatentDiffusion(unet, Pixels(), unconditional, Schedule(ScheduleConfig(kind="linear")), "epsilon", "pixels", sample_size=8)


def test_modules_lists_only_parts_with_weights(pixel_model: LatentDiffusion):
    assert pixel_model.modules == (pixel_model.unet,)
    autoencoder = AutoencoderKL(AutoencoderKLConfig(latent_channels=3, channels=(8,), norm_groups=4))
    assert replace(pixel_model, autoencoder=autoencoder).modules == (pixel_model.unet, autoencoder)


def test_to_moves_all_modules_and_updates_device_and_dtype(pixel_model: LatentDiffusion):
    autoencoder = AutoencoderKL(AutoencoderKLConfig(latent_channels=3, channels=(8,), norm_groups=4))
    model = replace(pixel_model, autoencoder=autoencoder)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.to(dtype=torch.bfloat16) is model
    assert model.dtype == autoencoder.last_layer.dtype == torch.bfloat16
    assert model.to(device="meta").device == torch.device("meta")
    assert model.dtype == torch.bfloat16


def test_bundle_is_frozen(pixel_model: LatentDiffusion):
    with pytest.raises(FrozenInstanceError):
        pixel_model.prediction = "v"  # pyright: ignore[reportAttributeAccessIssue]
