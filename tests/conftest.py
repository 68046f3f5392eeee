"""Settings and fixtures for all tests: one thread per process, and a tiny random latent diffusion model.

The networks are so small that several threads cost more than they save.
"""

import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that accesses the hub fails

import pytest
import torch

from daguerre.conditioning import TextConditioner, train_tokenizer
from daguerre.diffusion import Prediction, Schedule, ScheduleConfig
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet, UNetConfig
from daguerre.runtime.allocator import tune_malloc

tune_malloc()  # as every command does, so that the order of the tests does not matter

CAPTIONS = ["a red apple", "a blue apple", "a green circle on a white background", "two cats to the left of a pizza"] * 8


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., LatentDiffusion]:
    """Build a model of 32×32 images: `make_tiny_model(prediction="v", zero_terminal_snr=True, seed=0)`."""

    def make(prediction: Prediction = "v", *, zero_terminal_snr: bool = True, seed: int = 0) -> LatentDiffusion:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tokenizer = train_tokenizer(CAPTIONS, vocab_size=600, max_length=16)
            text = CLIPTextConfig(len(tokenizer), length=16, width=32, layers=2, heads=2, mlp_width=64, eos=tokenizer.eos)
            unet = UNetConfig(
                in_channels=6, out_channels=6, channels=(32, 64), blocks=1, depth=(1, 0), heads=(1, 2), context_width=32, norm_groups=8
            )
            vae = AutoencoderKLConfig(latent_channels=6, channels=(16, 32, 32), blocks=1, norm_groups=8, scaling_factor=0.7)
            model = LatentDiffusion(
                unet=UNet(unet),
                autoencoder=AutoencoderKL(vae),
                conditioner=TextConditioner(tokenizer, CLIPText(text)),
                schedule=Schedule(ScheduleConfig(zero_terminal_snr=zero_terminal_snr)),
                prediction=prediction,
                name="tiny",
                sample_size=32,
            )
            # A fresh UNet predicts zero and a fresh decoder grey images; random last layers make every difference visible.
            for layer in [module for module in model.unet.modules() if getattr(module, "bias", None) is not None]:
                if not torch.count_nonzero(layer.weight):
                    torch.nn.init.normal_(layer.weight, std=0.05)
            torch.nn.init.normal_(model.autoencoder.decoder.conv_out.weight, std=0.2)
        for module in model.modules:
            module.eval()
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model(make_tiny_model: Callable[..., LatentDiffusion]) -> LatentDiffusion:
    """A tiny model with v-prediction and zero terminal SNR, like the embedded one. Do not modify it."""
    return make_tiny_model()
