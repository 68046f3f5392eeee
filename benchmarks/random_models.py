"""Models of real sizes with random weights, for measuring what does not depend on what a model has learned.

    python -m benchmarks.random_models FOLDER [--size sd15]

Every matrix has variance 1/fan-in, so that hidden states neither vanish nor overflow. diffusers loads the same folder.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from daguerre.conditioning import TextConditioner, Tokenizer
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.models import autoencoder_kl, clip, unet
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.meta import shapes_only
from daguerre.weights import save


def randomly(network: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Fill a network built on the meta device, one tensor at a time, in its final dtype."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in network.state_dict().items():
        if shape.ndim > 1:
            tensors[name] = (torch.randn(shape.shape, generator=draw) * shape[0].numel() ** -0.5).to(dtype)
        elif name.endswith("bias"):
            tensors[name] = (torch.randn(shape.shape, generator=draw) * 0.02).to(dtype)
        else:
            tensors[name] = torch.ones(shape.shape, dtype=dtype)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def sd15(dtype: torch.dtype = torch.float16, *, tiny: bool = False) -> LatentDiffusion:
    """Stable Diffusion 1.5's architecture; tiny: with few channels, for trying the benchmarks themselves."""
    unet_config, vae_config, text_config = unet.SD1, autoencoder_kl.VAE_SD, clip.CLIP_L
    if tiny:
        unet_config = replace(unet_config, channels=(32, 64, 64, 64), heads=(2, 2, 2, 2), context_width=64)
        vae_config = replace(vae_config, channels=(32, 32, 64, 64))
        text_config = replace(text_config, width=64, mlp_width=128, heads=2, layers=2)
    with shapes_only():
        networks = UNet(unet_config), AutoencoderKL(vae_config), CLIPText(text_config)
    for seed, network in enumerate(networks):
        randomly(network, seed, dtype)
    network, autoencoder, encoder = networks
    conditioner = TextConditioner(Tokenizer.clip(), encoder).eval()
    return LatentDiffusion(network, autoencoder, conditioner, Schedule(ScheduleConfig()), "epsilon", "sd15-random")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    print(save(sd15(getattr(torch, options.dtype), tiny=options.tiny), options.folder))


if __name__ == "__main__":
    main()
