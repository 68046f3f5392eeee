"""Options of the recipes that train a latent diffusion model from nothing, and of the CLIP that scores it. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.training.config import LoopConfig, optional
from daguerre.training.options.first_stage import require_multiple
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions

CLIP_SCORER_LOOP = LoopConfig(
    max_train_steps=6200,
    batch_size=128,
    learning_rate=1e-3,
    weight_decay=0.1,
    betas=(0.9, 0.98),
    mixed_precision="auto",
    seed=1000,  # not the seed of the model's own CLIP
    sample_every=0,
)


@dataclass(frozen=True)
class LatentRecipe:
    """Options shared by the recipes that train autoencoder, CLIP and UNet. The same command resumes an interrupted run."""

    out: Path  # Directory for checkpoints, logs and the finished model.
    # Name or directory of a model to fine-tune; only its UNet is trained. By default all parts start from nothing.
    model: Annotated[str | None, optional("MODEL")] = None
    seed: int = 0  # Seed of the initial weights, the data order and the noise.
    autoencoder_steps: Annotated[int | None, optional("INT")] = None  # Number of training steps of the autoencoder. Default: the preset's.
    clip_steps: Annotated[int | None, optional("INT")] = None  # Number of training steps of CLIP. Default: the preset's.
    unet_channels: tuple[int, ...] = ()  # Channels of each level of the UNet, such as 64 128. Default: the preset's.
    unet_blocks: Annotated[int | None, optional("INT")] = None  # Residual blocks of each level of the UNet. Default: the preset's.
    diffusion_steps: Annotated[int | None, optional("INT")] = None  # Number of training steps of the UNet. Default: the preset's.
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)


@dataclass(frozen=True)
class EmojiRecipe(LatentRecipe):
    """Train the embedded model on rendered emoji: autoencoder, CLIP, diffusion."""

    out: Path = Path("runs/emoji")  # Directory for checkpoints, logs and the finished model.
    preset: Literal["cpu", "gpu"] = "cpu"  # Model size and batch sizes: for two CPU cores (hours) or one large GPU (20 minutes).


@dataclass(frozen=True)
class ShapesRecipe(LatentRecipe):
    """Train a small model on rendered shapes, all parts, on two CPU cores."""

    out: Path = Path("runs/shapes")  # Directory for checkpoints, logs and the finished model.


@dataclass(frozen=True)
class ClipScorerRecipe:
    """Train a CLIP on images with captions: the one that `daguerre evaluate` scores images with, or one of your own images."""

    data: str = "emoji"  # Directory of images with captions, or a built-in dataset: emoji, shapes.
    out: Path = Path("runs/clip-scorer")  # Directory for checkpoints, logs and the finished model.
    resolution: int = 64  # Image size in pixels, a multiple of 8.
    vocab_size: int = 3072  # Largest number of tokens that the tokenizer learns.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=lambda: CLIP_SCORER_LOOP)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)

    def __post_init__(self) -> None:
        require_multiple(self.resolution, 8, "this CLIP")
