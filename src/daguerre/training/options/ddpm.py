"""Options of `daguerre train ddpm`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions

DDPM_LOOP = LoopConfig(
    max_train_steps=10_000, batch_size=64, learning_rate=2e-4, lr_warmup_steps=200, mixed_precision="auto", sample_every=500
)
NORM_GROUPS_OF = 4  # channels must be multiples of it, so that group norm has at least that many groups


@dataclass(frozen=True)
class UNetShape:
    """The size of a UNet without cross-attention; all values are those of the levels from full resolution down."""

    channels: tuple[int, ...] = (64, 128, 192)  # Channels of each level; each level after the first halves the resolution.
    blocks: int = 2  # Number of residual blocks per level.
    attention_levels: tuple[int, ...] = (1, 2)  # Levels with self-attention; 0 is full resolution. The middle always has it.
    head_width: int = 64  # Channels of an attention head; levels that are not a multiple of it have one head.
    dropout: float = 0.0  # Dropout rate inside the residual blocks.

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < NORM_GROUPS_OF or any(width % NORM_GROUPS_OF for width in self.channels):
            raise DaguerreError(f"channels is {self.channels}; give one number per level, each a multiple of {NORM_GROUPS_OF}.")
        if self.blocks < 1 or self.head_width < 1 or not 0 <= self.dropout < 1:
            raise DaguerreError(
                f"blocks is {self.blocks}, head_width {self.head_width} and dropout {self.dropout}; use at least 1, at least 1, and a rate "
                "from 0 up to 1."
            )
        if wrong := [level for level in self.attention_levels if not 0 <= level < len(self.channels)]:
            raise DaguerreError(f"attention_levels has {wrong[0]}; the levels are 0 to {len(self.channels) - 1}.")

    def check_side(self, side: int) -> None:
        """Raise DaguerreError unless images or latents with `side` pixels can be halved once per level."""
        factor = 2 ** (len(self.channels) - 1)
        if side < 1 or side % factor:
            raise DaguerreError(
                f"A UNet of {len(self.channels)} levels needs a side that is a multiple of {factor}, not {side}; change --resolution or "
                "give fewer --channels."
            )


@dataclass(frozen=True)
class DDPMRecipe:
    """Train a diffusion model of pixels (DDPM), unconditional or with classes. The same command resumes an interrupted run."""

    data: str  # Directory with images, shards, their address, or a built-in dataset: shapes, emoji, emoji-faces.
    out: Path = Path("runs/ddpm")  # Directory for checkpoints, logs and the finished model.
    resolution: int = 32  # Image size in pixels.
    # What the model is conditioned on. A class is the name of a subfolder, a caption, or the kind of a built-in image.
    condition: Literal["none", "class"] = "none"
    prediction: Literal["epsilon", "v", "x0"] = "epsilon"  # What the network predicts: the noise, v, or the image.
    schedule: Literal["linear", "cosine"] = "linear"  # Noise schedule: β linear from 0.0001 to 0.02, or ᾱ along a cosine.
    variance: Literal["small", "large", "learned"] = "small"  # Variance of ancestral sampling: β̃, β, or learned with the hybrid loss.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    shape: tyro.conf.OmitArgPrefixes[UNetShape] = field(default_factory=UNetShape)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=lambda: DDPM_LOOP)
    loss: tyro.conf.OmitArgPrefixes[DiffusionLoss] = field(default_factory=DiffusionLoss)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)

    def __post_init__(self) -> None:
        self.shape.check_side(self.resolution)
