"""Everything that one latent diffusion model is made of, as one frozen bundle (Rombach et al. 2022, arXiv:2112.10752, figure 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.schedule import Schedule
from daguerre.models.unet import UNet


class Autoencoder(Protocol):
    """What sampling asks for: pictures (B, 3, H, W) in [−1, 1] to latents (B, Z, H/f, W/f) of about unit variance, and back."""

    @property
    def downsample_factor(self) -> int: ...

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LatentDiffusion:
    """conditioner: prompts to what the network is told, one batch entry a prompt. prediction: what the network predicts.
    size: the side in pixels of the pictures that it was trained on. guidance: the scale that suits it, where none is asked for.
    files: with the weights, where it was read from files. low_resolution: of an upscaler, the noise on the small picture that it is shown.
    refiner: a model of the same latents that walks the last steps.
    in_turns: its UNet, too, takes turns in memory, where its large weights are of this dtype (see `weights.in_order`)."""

    unet: UNet
    autoencoder: Autoencoder
    conditioner: Callable[[Sequence[str]], Conditioning]
    schedule: Schedule
    prediction: Prediction
    name: str
    sample_size: int = 512
    default_guidance: float = 5.0
    files: tuple[Path, ...] = ()
    low_res_schedule: Schedule | None = None
    refiner: "LatentDiffusion | None" = None
    unet_offload_dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        return self.unet.conv_norm_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_norm_out.weight.dtype

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The parts that have weights."""
        own = tuple(part for part in (self.unet, self.autoencoder, self.conditioner) if isinstance(part, nn.Module))
        return own if self.refiner is None else own + self.refiner.modules

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights, in place, as torch does; returns the same bundle."""
        for module in self.modules:
            module.to(device=device, dtype=dtype)
        return self
