"""Options of the recipes that train a latent diffusion model from nothing, and of the CLIP that scores it. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from daguerre.training.config import optional


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
    """Train the CLIP that `daguerre evaluate` scores images with."""

    out: Path = Path("runs/clip-scorer")  # Directory for checkpoints, logs and the finished model.
    resolution: int = 64  # Image size in pixels.
    max_train_steps: Annotated[int | None, optional("INT")] = None  # Total number of optimizer steps. Default: the preset's.
    seed: int = 1000  # Seed of the initial weights and the data order.
