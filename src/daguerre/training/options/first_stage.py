"""Options of the recipes that train a first stage: autoencoder, vae, kl, vqvae, vqgan. No torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import AutoencoderLoss, LoopConfig, optional
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions

NORM_GROUPS = 4  # of every group norm: with few channels a group it is nearly instance norm, which loses colour
FIRST_STAGE_LOOP = LoopConfig(
    max_train_steps=2000, batch_size=16, learning_rate=8e-4, ema_decay=0.998, mixed_precision="auto", sample_every=500, checkpoint_every=500
)
ADVERSARIAL_LOSS = AutoencoderLoss(adversarial_weight=0.5, adversarial_start=1000, adversarial_ramp=200)


def require_multiple(resolution: int, f: int, owner: str) -> None:
    """Raise DaguerreError if a resolution in pixels is not a multiple of the downsampling factor f of `owner`."""
    if resolution < f or resolution % f:
        suggestion = max(round(resolution / f), 1) * f
        raise DaguerreError(f"resolution is {resolution}; for {owner} it must be a multiple of {f}, such as {suggestion}.")


@dataclass(frozen=True)
class _FirstStageOptions:
    """Options shared by all first stages. The same command resumes an interrupted run."""

    data: str  # Directory with images, shards, their address, or a built-in dataset: shapes, emoji.
    out: Path  # Directory for checkpoints, logs and the finished model.
    resolution: int = 64  # Image size in pixels.
    f: Literal[2, 4, 8, 16, 32] = 4  # Downsampling factor: image size divided by latent size.
    base_channels: int = 32  # Channels at full resolution, a multiple of 4; deeper levels have up to four times as many.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=lambda: FIRST_STAGE_LOOP)

    def __post_init__(self) -> None:
        if self.base_channels < NORM_GROUPS or self.base_channels % NORM_GROUPS:
            raise DaguerreError(f"base_channels is {self.base_channels}; it must be a multiple of {NORM_GROUPS}, such as 32.")
        require_multiple(self.resolution, self.f, f"f {self.f}")


@dataclass(frozen=True)
class _ContinuousOptions(_FirstStageOptions):
    latent_channels: Annotated[int | None, optional("INT")] = None  # Channels of the latent. Default: 4 at f2, doubled with each level.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_channels is not None and self.latent_channels < 1:
            raise DaguerreError(f"latent_channels is {self.latent_channels}; it must be 1 or more.")


@dataclass(frozen=True)
class _AdversarialOptions(_FirstStageOptions):
    loss: tyro.conf.OmitArgPrefixes[AutoencoderLoss] = field(default_factory=AutoencoderLoss)
    perceptual: tuple[Path, ...] = ()  # LPIPS weights (1 or 2 files), or a directory: a CLIP or an autoencoder; clip is embedded.
    discriminator_channels: int = 32  # Channels of the discriminator's first layer; each layer doubles them, up to eight times.
    discriminator_layers: int = 2  # Number of strided convolutions in the discriminator.

    def __post_init__(self) -> None:
        super().__post_init__()
        loss, end = self.loss, self.loss.adversarial_start + self.loss.adversarial_ramp
        if loss.perceptual_weight and not self.perceptual:
            raise DaguerreError("--perceptual-weight needs a perceptual network; give its weights with --perceptual.")
        if loss.adversarial_weight and end > self.loop.known_steps:
            raise DaguerreError(
                f"The discriminator starts at step {loss.adversarial_start} and has its full weight at step {end}, but there are only "
                f"{self.loop.max_train_steps} steps; increase --max-train-steps, decrease --adversarial-start, or set "
                "--adversarial-weight 0."
            )

    @property
    def weights(self) -> AutoencoderLoss:
        """The loss weights; a perceptual network without a weight has weight 1."""
        return replace(self.loss, perceptual_weight=self.loss.perceptual_weight or 1.0) if self.perceptual else self.loss


@dataclass(frozen=True)
class AutoencoderRecipe(_AdversarialOptions, _ContinuousOptions):
    """Train a plain autoencoder, without regularisation of the latent."""

    out: Path = Path("runs/autoencoder")  # Directory for checkpoints, logs and the finished model.


@dataclass(frozen=True)
class VAERecipe(_ContinuousOptions):
    """Train a variational autoencoder on the evidence lower bound, in bits."""

    out: Path = Path("runs/vae")  # Directory for checkpoints, logs and the finished model.


@dataclass(frozen=True)
class KLRecipe(_AdversarialOptions, _ContinuousOptions):
    """Train the autoencoder of latent diffusion: weak KL regularisation and a discriminator."""

    out: Path = Path("runs/kl")  # Directory for checkpoints, logs and the finished model.
    loss: tyro.conf.OmitArgPrefixes[AutoencoderLoss] = field(default_factory=lambda: replace(ADVERSARIAL_LOSS, kl_weight=1e-3))


@dataclass(frozen=True)
class VQVAERecipe(_AdversarialOptions):
    """Train a VQ-VAE: the latent is a grid of codes."""

    out: Path = Path("runs/vqvae")  # Directory for checkpoints, logs and the finished model.
    codebook_size: int = 512  # Number of codes.
    code_dim: int = 16  # Dimensions of a code's vector.
    # Nearest code, learned by the loss (nearest) or by moving averages (ema); or Gumbel-softmax.
    codebook: Literal["nearest", "ema", "gumbel"] = "ema"
    # Re-initialise codes used fewer than this many times per batch (moving average). Default: 0.1; 0 for gumbel.
    dead_code_threshold: Annotated[float | None, optional("FLOAT")] = None
    codebook_start: int = 200  # Step at which a codebook that is not gumbel starts; before it the latent is not quantised.
    temperature_steps: int = 1000  # Number of steps over which the temperature of a gumbel codebook falls.

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.loop.known_steps
        if self.codebook == "gumbel" and self.temperature_steps > steps:
            raise DaguerreError(
                f"The codebook's temperature falls over {self.temperature_steps} steps, but there are only {steps}; increase "
                "--max-train-steps or decrease --temperature-steps."
            )
        if self.codebook != "gumbel" and self.codebook_start >= steps:
            raise DaguerreError(
                f"The codebook starts at step {self.codebook_start}, but there are only {steps} steps; increase --max-train-steps or "
                "decrease --codebook-start."
            )


@dataclass(frozen=True)
class VQGANRecipe(VQVAERecipe):
    """Train a VQGAN: a VQ-VAE with a discriminator."""

    out: Path = Path("runs/vqgan")  # Directory for checkpoints, logs and the finished model.
    loss: tyro.conf.OmitArgPrefixes[AutoencoderLoss] = field(default_factory=lambda: ADVERSARIAL_LOSS)
    # Nearest code, learned by the loss (nearest) or by moving averages (ema); or Gumbel-softmax.
    codebook: Literal["nearest", "ema", "gumbel"] = "nearest"


FirstStageRecipe = AutoencoderRecipe | VAERecipe | KLRecipe | VQVAERecipe  # a VQGANRecipe is a VQVAERecipe
