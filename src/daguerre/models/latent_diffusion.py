"""The parts of one latent diffusion model as a frozen bundle (Rombach et al. 2022, arXiv:2112.10752, figure 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.diffusion.denoiser import Prediction
from daguerre.diffusion.diffusers_scheduler import SamplerConfig
from daguerre.diffusion.learned_variance import Variance
from daguerre.diffusion.schedule import Schedule
from daguerre.models.unet import UNet


class Autoencoder(Protocol):
    """The interface that sampling needs: images (B, 3, H, W) in [−1, 1] to latents (B, Z, H/f, W/f) of about unit variance, and back."""

    @property
    def downsample_factor(self) -> int: ...

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


class Engine(Protocol):
    """How the UNet of a model is computed in a run: see `runtime.engines`."""

    name: ClassVar[str]

    def prepare(self, unet: UNet, *, low_memory: bool = False) -> Callable[..., Tensor]:
        """A function that answers the calls of the UNet; it may be used for one run."""
        ...


@dataclass(frozen=True)
class LatentDiffusion:
    """A UNet with its autoencoder, text conditioner and noise schedule.

    conditioner: prompts to a Conditioning with one batch entry per prompt. prediction: what the UNet predicts. sample_size: image side in
    pixels in training. default_guidance: guidance scale if a request gives none. files: the weight files, if loaded from files.
    low_res_schedule: for an upscaler, the noise schedule of its low-resolution input. refiner: a model with the same latents for the last
    steps. unet_offload_dtype: dtype of the offloaded UNet weights under sequential offload, else None (see `runtime.offload`).
    sampler_config: the sampler and spacing used by default, if the model comes with a scheduler of diffusers. variance: of the reverse
    process in ancestral sampling (`ddpm`); with a learned one the UNet has twice the output channels.
    adapters: what `adapters.with_adapters` has attached, in order. preview_decoder: a small decoder of the same latents, for previews only
    (see `models.tiny_autoencoder`). engine: what computes the UNet in a run; None is the default, `runtime.engines.Torch`.
    """

    unet: UNet
    autoencoder: Autoencoder
    conditioner: Callable[[Sequence[str]], Conditioning]
    schedule: Schedule
    prediction: Prediction
    name: str
    sample_size: int = 512
    default_guidance: float = 7.5
    files: tuple[Path, ...] = ()
    low_res_schedule: Schedule | None = None
    refiner: "LatentDiffusion | None" = None
    unet_offload_dtype: torch.dtype | None = None
    sampler_config: SamplerConfig | None = None
    adapters: tuple[object, ...] = ()
    variance: Variance = "small"
    preview_decoder: nn.Module | None = None
    engine: Engine | None = None

    @property
    def latent_channels(self) -> int:
        """Z: the channels of the latents, or of the pixels of a model of pixels."""
        channels = self.unet.config.out_channels
        return channels // 2 if self.variance == "learned" else channels

    @property
    def device(self) -> torch.device:
        return self.unet.conv_norm_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_norm_out.weight.dtype

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The parts with weights."""
        modules = tuple(
            part for part in (self.unet, self.autoencoder, self.conditioner, self.preview_decoder) if isinstance(part, nn.Module)
        )
        return modules if self.refiner is None else modules + self.refiner.modules

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights in place, as `nn.Module.to` does; returns the same bundle."""
        for module in self.modules:
            module.to(device=device, dtype=dtype)
        return self
