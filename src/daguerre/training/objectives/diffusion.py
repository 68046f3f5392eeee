"""The diffusion loss: add noise to a clean sample, predict the target of the prediction type, weight by the noise level.

    x_t = √ᾱ·x0 + √(1 − ᾱ)·ε,   L = w(t)·‖F(x_t, t, c) − target‖²      (Ho et al. 2020, arXiv:2006.11239, eq. 14)

Timesteps are uniform or logit-normal, with an optional shift towards noise (Esser et al. 2024, arXiv:2403.03206, sections 3.1 and 5.3.2):
in small latents the image is soon recognisable, and the caption matters only under much noise. w is 1 or the min-SNR weight (Hang et al.
2023, arXiv:2303.09556). With a learned variance the loss is L + λ·L_vlb, whose second part does not change the mean (Nichol & Dhariwal
2021, arXiv:2102.09672, eq. 16). A share of the captions is dropped, so that the model is also unconditional for classifier-free guidance.
The text encoder is frozen or trained with the UNet, as in the first text-conditioned latent diffusion model (Rombach et al. 2022,
arXiv:2112.10752, section 4.3.1).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from daguerre.conditioning import Conditioner, TextConditioner
from daguerre.conditioning.class_map_image import LayoutConditioner
from daguerre.data import Batch
from daguerre.diffusion import Conditioning, Posterior, loss_weight, predicted_x0, split_variance, training_pair
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.attention_hooks import capture_cross_attention
from daguerre.nn.gradient_checkpointing import BLOCKS
from daguerre.pipelines import Request, generate
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss
from daguerre.training.datasets.fine_tuning import ClassPrior, PriorBatch
from daguerre.training.objectives.attention_grounding import AttentionMaps, Grounding

BOUND_WEIGHT = 1e-3  # λ of a learned variance, as in the paper
PREVIEW_SEEDS = 16  # images of an unconditional model in the sample grid


class TextConditionedUNet(nn.Module):
    """A UNet and its text encoder as one network, so that one optimizer trains both."""

    def __init__(self, unet: UNet, conditioner: Conditioner):
        super().__init__()
        self.unet, self.conditioner = unet, conditioner
        if isinstance(conditioner, TextConditioner) and conditioner.encoder.text_projection is not None:
            conditioner.encoder.text_projection.requires_grad_(False)  # the UNet does not use it, so it has no gradient
        if isinstance(conditioner, LayoutConditioner):
            conditioner.encoder.to_logits.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        return self.unet(x, t, self.conditioner.encode_captions(captions))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the UNet only; captions of new lengths would recompile the text encoder."""
        self.unet.compile(*args, **kwargs)


class DiffusionTask:
    """Trains the UNet of a latent diffusion model, and optionally its text encoder; the autoencoder stays as it is."""

    name = "diffusion"
    ema_networks = ("unet",)
    sharded_blocks: tuple[type[nn.Module], ...] = BLOCKS

    def __init__(
        self,
        model: LatentDiffusion,
        weights: DiffusionLoss,
        encode_text: Callable[[Sequence[str]], Conditioning],
        preview_prompts: Sequence[str],
        *,
        trained_text: Conditioner | None = None,
        grounding: Grounding | None = None,
        preview: Callable[[LatentDiffusion], Image.Image] | None = None,
    ):
        """
        Args:
            encode_text: captions to conditions, for a frozen text encoder.
            preview_prompts: of the sample grid; none for an unconditional model.
            trained_text: the model's conditioner, if it is trained too; then `encode_text` is not used.
            grounding: an attention loss for batches with `coverage`.
            preview: the sample grid, instead of one of the preview prompts.
        """
        self.networks: dict[str, nn.Module] = {
            "unet": model.unet if trained_text is None else TextConditionedUNet(model.unet, trained_text)
        }
        self.posterior = Posterior.of(model.schedule)
        self.model, self.weights, self.preview_prompts, self.grounding = model, weights, tuple(preview_prompts), grounding
        self.preview = preview
        self.encode_text = encode_text if trained_text is None else list  # a TextConditionedUNet encodes captions itself

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        device = self.model.device
        x0 = self.latents(batch)
        with torch.no_grad():
            dropped = random.uniform() < self.weights.caption_dropout
            captions = ["" if drop else c for drop, c in zip(dropped.tolist(), batch.captions, strict=True)]
            condition = self.encode_text(captions) if batch.condition is None else _without_dropped(batch.condition.to(device), dropped)
        prediction = self.model.prediction
        t = sample_timesteps(len(self.model.schedule.alphas_cumprod), self.weights, random)
        alpha_bar = self.model.schedule.alphas_cumprod[t].float().to(device)  # (B,)
        eps = self.noise(x0.shape[1:], random, device)
        x_t, target = training_pair(prediction, x0, eps, alpha_bar)
        attention_maps = None if self.grounding is None or batch.coverage is None else AttentionMaps()
        with nullcontext() if attention_maps is None else capture_cross_attention(self.model.unet, attention_maps.add):
            output = networks["unet"](x_t, t.to(device), condition)
        output, fraction = split_variance(output.float()) if self.model.variance == "learned" else (output.float(), None)
        error = (output - target).square().mean((1, 2, 3))  # (B,)
        weight = loss_weight(prediction, alpha_bar / (1 - alpha_bar), self.weights.snr_gamma, floor=self.weights.weight_floor)
        loss, logged = (weight * error).mean(), {}
        if self.weights.snr_gamma is not None or attention_maps is not None:  # otherwise it equals the loss
            logged["mse"] = error.detach().mean()
        if fraction is not None:
            bound = self._bound(t, x0, predicted_x0(prediction, output.detach(), x_t, alpha_bar), fraction)
            loss, logged["mse"], logged["bits_per_dim"] = loss + BOUND_WEIGHT * bound, error.detach().mean(), bound.detach()
        if self.grounding is not None and attention_maps is not None and batch.coverage is not None:
            grounding = self.grounding.loss(attention_maps, captions, batch.coverage, alpha_bar)
            loss, logged["grounding"] = loss + self.grounding.weight * grounding, grounding.detach()
        yield "unet", loss, logged

    def _bound(self, t: Tensor, x0: Tensor, predicted: Tensor, fraction: Tensor) -> Tensor:
        """An estimate of the variational bound in bits per dimension, (): T times the mean of the terms of steps t (B,)."""
        log_variance = self.posterior.log_variance(t, "learned", x0, fraction)
        return len(self.model.schedule) * self.posterior.bound_terms(t, x0, predicted, log_variance).mean()

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """The clean latents of a batch (B, Z, h, w), float32."""
        x = batch.x.to(self.model.device)
        return (x if batch.latent else self.model.autoencoder.encode(x)).float()

    def noise(self, shape: Sequence[int], random: BatchRandom, device: torch.device) -> Tensor:
        """The noise (B, *shape) of latents."""
        return random.normal(shape, device)

    def sample(self) -> Image.Image:
        """Images of the preview prompts, or without prompts of several seeds, with the current weights and the model's default guidance."""
        request = Request(self.preview_prompts, steps=20) if self.preview_prompts else Request(num_images=PREVIEW_SEEDS, steps=20)
        with torch.compiler.set_stance("force_eager"):  # compiling for these shapes takes longer than the images
            return generate(self.model, request).grid().image if self.preview is None else self.preview(self.model)


class PriorPreservation:
    """A task whose loss has the weighted loss of images of a class added, so that the model does not forget the class.

    L = L(x, c) + λ·L(x_pr, c_pr), where the model itself generated the images x_pr with the captions c_pr, which lack the new word (Ruiz et
    al. 2022, arXiv:2208.12242, equation 2). Batches without images of a class, as for validation, have only the first part.
    """

    def __init__(self, task: DiffusionTask, weight: float):
        self.task, self.weight = task, weight
        self.name, self.networks, self.ema_networks = task.name, task.networks, task.ema_networks
        self.sharded_blocks = task.sharded_blocks

    def to(self, device: torch.device) -> None:
        self.task.to(device)

    def losses(
        self, batch: PriorBatch | Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        if isinstance(batch, Batch):
            yield from self.task.losses(batch, networks, random, step)
            return
        parts = [self.task.losses(part, networks, random, step) for part in (batch.instance, batch.prior)]
        for (name, instance, logged), (_, prior, _) in zip(*parts, strict=True):
            yield name, instance + self.weight * prior, {**logged, "instance": instance.detach(), "prior": prior.detach()}

    def sample(self) -> Image.Image | None:
        return self.task.sample()


def with_prior(task: DiffusionTask, prior: ClassPrior | None) -> DiffusionTask | PriorPreservation:
    """The task, with the loss of the prior if there is one."""
    return task if prior is None else PriorPreservation(task, prior.weight)


def _without_dropped(condition: Conditioning, dropped: Tensor) -> Conditioning:
    """A condition in float32, whose context is zero for the dropped ones (B,); channels are never dropped."""
    condition = condition.to(dtype=torch.float32)
    if condition.context is None:
        return condition
    return replace(condition, context=condition.context * ~dropped[:, None, None].to(condition.context.device))


def sample_timesteps(timesteps: int, weights: DiffusionLoss, random: BatchRandom) -> Tensor:
    """Integer timesteps (B,) in [0, timesteps)."""
    if weights.timestep_sampling == "uniform":
        u = random.uniform(dtype=torch.float64)
    else:
        u = random.normal(dtype=torch.float64).sigmoid()
    return (weights.shift * u / (1 + (weights.shift - 1) * u) * timesteps).long().clamp(max=timesteps - 1)
