"""The diffusion loss: noise a clean sample, ask the network what the prediction type wants, weigh by the noise level.

    x_t = √ᾱ·x0 + √(1 − ᾱ)·ε,   L = w(t)·‖F(x_t, t, c) − target‖²      (Ho et al. 2020, arXiv:2006.11239, eq. 14)

Times are drawn uniformly or logit-normally (Esser et al. 2024, arXiv:2403.03206, section 3.1); w is 1 or min-SNR's
(Hang et al. 2023, arXiv:2303.09556). A share of the captions is dropped, so that guidance has an unconditional model to push away from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from daguerre.data import Batch
from daguerre.diffusion import Conditioning, loss_weight, training_pair
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import generate


@dataclass(frozen=True)
class DiffusionLoss:
    """How noise levels are drawn and weighed."""

    times: Literal["uniform", "logit_normal"] = "uniform"
    min_snr: float | None = None  # γ, 5 in the paper; None weighs every level alike
    weight_floor: float = 0.05  # min-SNR's weight of pure noise, 0 in the paper, where sampling from zero terminal SNR starts
    dropout: float = 0.1  # share of captions replaced by the empty one


class DiffusionStage:
    """Trains the UNet of a latent diffusion model; autoencoder and text encoder stay as they are."""

    name = "diffusion"
    averaged = ("unet",)

    def __init__(
        self,
        model: LatentDiffusion,
        weights: DiffusionLoss,
        read: Callable[[Sequence[str]], Conditioning],
        shown: Sequence[str],
        *,
        guidance: float = 4.0,
    ):
        """`read` turns captions into conditions; `shown` are prompts for the sample grid."""
        self.networks: dict[str, nn.Module] = {"unet": model.unet}
        self.model, self.weights, self.read, self.shown, self.guidance = model, weights, read, tuple(shown), guidance

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def losses(self, batch: Batch, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        device = self.model.device
        with torch.no_grad():
            x0 = batch.x.to(device)
            if not batch.latent:
                x0 = self.model.autoencoder.encode(x0)
            dropped = torch.rand(len(batch), generator=draw) < self.weights.dropout
            cond = self.read(["" if drop else c for drop, c in zip(dropped.tolist(), batch.captions, strict=True)])
        x0, prediction = x0.float(), self.model.prediction
        t = draw_times(len(batch), len(self.model.schedule.alpha_bars), self.weights.times, draw)
        alpha_bar = self.model.schedule.alpha_bars[t].float().to(device)  # (B,)
        eps = torch.randn(x0.shape, generator=draw).to(device)
        x_t, target = training_pair(prediction, x0, eps, alpha_bar)
        error = (self.networks["unet"](x_t, t.to(device), cond).float() - target).square().mean((1, 2, 3))  # (B,)
        weight = loss_weight(prediction, alpha_bar / (1 - alpha_bar), self.weights.min_snr, floor=self.weights.weight_floor)
        yield "unet", (weight * error).mean(), {"mse": error.detach().mean()}

    def sample(self) -> Image.Image:
        """The shown prompts, pictured with the weights as they are."""
        return generate(self.model, prompt=self.shown, steps=20, guidance=self.guidance).grid().image


def draw_times(count: int, timesteps: int, times: str, draw: torch.Generator) -> Tensor:
    """`count` integer times in [0, timesteps)."""
    if times == "uniform":
        return torch.randint(timesteps, (count,), generator=draw)
    return (torch.randn(count, generator=draw).sigmoid() * timesteps).long().clamp(max=timesteps - 1)
