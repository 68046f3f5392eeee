"""What the trainings of adapters share: a frozen model that a few trained tensors change, and the diffusion loss on its predictions."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from daguerre.conditioning import Conditioner
from daguerre.data import Batch
from daguerre.diffusion import Conditioning
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss
from daguerre.training.datasets.latents import CachedCaptions
from daguerre.training.objectives.diffusion import DiffusionTask


class AdaptedModel(nn.Module):
    """A frozen model and the trained tensors that change it. Only the tensors are its parameters and its state.

    Inside `attached()` the model's layers, and with them every image it generates, have the changes.
    """

    def __init__(self, model: LatentDiffusion, *, cached: bool) -> None:
        """cached: encode each caption only once; only if the tensors change no text encoder."""
        super().__init__()
        self.model, self._cached = model, cached
        self._captions: dict[tuple[int, int], CachedCaptions] = {}
        for module in model.modules:
            module.requires_grad_(False).eval()

    def attached(self) -> AbstractContextManager[None]:
        """Inside the block the model's layers have the changes. The backward pass must happen inside, too."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        """The prediction of the model for noisy latents x (B, Z, h, w) with captions; call it inside `attached()`."""
        return self.model.unet(x.to(self.model.dtype), t, self.encode(captions, x))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the UNet only; captions of new lengths would recompile the text encoder."""
        self.model.unet.compile(*args, **kwargs)

    def encode(self, captions: Sequence[str], x: Tensor) -> Conditioning:
        """The conditions of captions, for latents x (B, Z, h, w)."""
        factor, conditioner = self.model.autoencoder.downsample_factor, self.model.conditioner
        assert isinstance(conditioner, Conditioner)
        size = x.shape[-2] * factor, x.shape[-1] * factor
        if not self._cached:
            return conditioner.with_size(*size).encode_captions(captions)
        if size not in self._captions:
            self._captions[size] = CachedCaptions(conditioner.with_size(*size).encode_captions)
        with torch.no_grad():
            return self._captions[size](captions)


class AdapterTask(DiffusionTask):
    """Trains the tensors of an `AdaptedModel` on the diffusion loss."""

    sharded_blocks = ()  # the trained tensors are small

    def __init__(self, network: AdaptedModel, weights: DiffusionLoss, preview_prompts: Sequence[str]):
        super().__init__(network.model, weights, _as_texts, preview_prompts)
        self.networks: dict[str, nn.Module] = {"unet": network}

    def to(self, device: torch.device) -> None:
        super().to(device)
        if device.type == "cpu":
            self.model.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # faster convolutions

    def captions(self, captions: list[str], random: BatchRandom) -> list[str]:
        """The captions that one step uses for the images."""
        return captions

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        captions = self.captions(batch.captions, random)
        yield from super().losses(replace(batch, captions=captions), networks, random, step)


def _as_texts(captions: Sequence[str]) -> Any:
    """The captions themselves: an `AdaptedModel` encodes them."""
    return list(captions)
