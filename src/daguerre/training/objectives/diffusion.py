"""The diffusion loss: noise a clean sample, ask the network what the prediction type wants, weigh by the noise level.

    x_t = √ᾱ·x0 + √(1 − ᾱ)·ε,   L = w(t)·‖F(x_t, t, c) − target‖²      (Ho et al. 2020, arXiv:2006.11239, eq. 14)

Times are drawn uniformly or logit-normally and may be shifted towards noise (Esser et al. 2024, arXiv:2403.03206, sections 3.1 and 5.3.2):
where latents are few, a picture is soon told from the noisy one, and only under much noise are words needed. w is 1 or min-SNR's
(Hang et al. 2023, arXiv:2303.09556). A share of the captions is dropped, so that guidance has an unconditional model to push away from.
The text encoder stays as it is, or learns on with the UNet, as that of the first latent diffusion model for text did (Rombach et al. 2022,
arXiv:2112.10752, section 4.3.1).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from daguerre.conditioning import Conditioner, TextConditioner
from daguerre.data import Batch
from daguerre.diffusion import Conditioning, loss_weight, training_pair
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.attention_hooks import capture_cross_attention
from daguerre.pipelines import generate
from daguerre.training.config import DiffusionLoss
from daguerre.training.noise import normal
from daguerre.training.objectives.attention_grounding import AttentionMaps, Grounding


class TextConditionedUNet(nn.Module):
    """A UNet with the text encoder that tells it, as one network, so that one loss trains both."""

    def __init__(self, unet: UNet, conditioner: Conditioner):
        super().__init__()
        self.unet, self.conditioner = unet, conditioner
        if isinstance(conditioner, TextConditioner) and conditioner.encoder.text_projection is not None:
            conditioner.encoder.text_projection.requires_grad_(False)  # leads to no token's state, so no gradient reaches it

    def forward(self, x: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        return self.unet(x, t, self.conditioner.encode_captions(captions))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what the time goes into; texts would be compiled anew each time."""
        self.unet.compile(*args, **kwargs)


class DiffusionTask:
    """Trains the UNet of a latent diffusion model, and its text encoder if told to; the autoencoder stays as it is."""

    name = "diffusion"
    ema_networks = ("unet",)

    def __init__(
        self,
        model: LatentDiffusion,
        weights: DiffusionLoss,
        encode_text: Callable[[Sequence[str]], Conditioning],
        preview_prompts: Sequence[str],
        *,
        text: Conditioner | None = None,
        grounding: Grounding | None = None,
    ):
        """`read` turns captions into conditions; `shown` are prompts for the sample grid; `text`: the model's conditioner, if it learns;
        `grounding`: what its attention is taught besides, on batches that know where things are."""
        self.networks: dict[str, nn.Module] = {"unet": model.unet if text is None else TextConditionedUNet(model.unet, text)}
        self.model, self.weights, self.shown, self.grounding = model, weights, tuple(preview_prompts), grounding
        self.read = encode_text if text is None else list  # the network reads its captions itself

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def losses(self, batch: Batch, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        device = self.model.device
        with torch.no_grad():
            x0 = batch.x.to(device)
            if not batch.latent:
                x0 = self.model.autoencoder.encode(x0)
            dropped = torch.rand(len(batch), generator=draw) < self.weights.caption_dropout
            captions = ["" if drop else c for drop, c in zip(dropped.tolist(), batch.captions, strict=True)]
            told = self.read(captions)
        x0, prediction = x0.float(), self.model.prediction
        t = sample_timesteps(len(batch), len(self.model.schedule.alphas_cumprod), self.weights, draw)
        alpha_bar = self.model.schedule.alphas_cumprod[t].float().to(device)  # (B,)
        eps = normal(x0.shape, draw, device)
        x_t, target = training_pair(prediction, x0, eps, alpha_bar)
        looks = None if self.grounding is None or batch.coverage is None else AttentionMaps()
        with nullcontext() if looks is None else capture_cross_attention(self.model.unet, looks.add):
            answer = self.networks["unet"](x_t, t.to(device), told)
        error = (answer.float() - target).square().mean((1, 2, 3))  # (B,)
        weight = loss_weight(prediction, alpha_bar / (1 - alpha_bar), self.weights.snr_gamma, floor=self.weights.weight_floor)
        loss, logged = (weight * error).mean(), {}
        if self.weights.snr_gamma is not None or looks is not None:  # else it is the loss itself
            logged["mse"] = error.detach().mean()
        if self.grounding is not None and looks is not None and batch.coverage is not None:
            astray = self.grounding.loss(looks, captions, batch.coverage, alpha_bar)
            loss, logged["astray"] = loss + self.grounding.weight * astray, astray.detach()
        yield "unet", loss, logged

    def sample(self) -> Image.Image:
        """The shown prompts, pictured with the weights as they are and the guidance that the finished model will have."""
        with torch.compiler.set_stance("force_eager"):  # what was compiled for training is not compiled anew for eight pictures
            return generate(self.model, prompt=self.shown, steps=20).grid().image


def sample_timesteps(count: int, timesteps: int, weights: DiffusionLoss, draw: torch.Generator) -> Tensor:
    """`count` integer times in [0, timesteps)."""
    if weights.timestep_sampling == "uniform":
        u = torch.rand(count, generator=draw, dtype=torch.float64)
    else:
        u = torch.randn(count, generator=draw, dtype=torch.float64).sigmoid()
    return (weights.shift * u / (1 + (weights.shift - 1) * u) * timesteps).long().clamp(max=timesteps - 1)
