"""Options of `daguerre train decoder` and `daguerre train tiny-decoder`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import LoopConfig, optional
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions


@dataclass(frozen=True)
class DecoderRecipe:
    """Train only the decoder of a model's autoencoder; the latents stay the same."""

    data: str  # Directory with images, or a built-in dataset: shapes, emoji.
    # Model or first stage to start from: a directory, or a checkpoint file. Default: the embedded model.
    model: Annotated[str | None, optional("MODEL")] = None
    out: Path = Path("runs/decoder")  # Directory for checkpoints, logs and the finished model.
    resolution: int = 64  # Image size in pixels.
    perceptual: tuple[Path, ...] = ()  # LPIPS weights (1 or 2 files), or a directory: a CLIP or an autoencoder; clip is embedded.
    perceptual_weight: float = 0.1  # Weight of the perceptual distance; the squared error has weight 1.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(max_train_steps=1000, batch_size=8, learning_rate=1e-4, ema_decay=0.99, sample_every=250)
    )


@dataclass(frozen=True)
class TinyDecoderRecipe:
    """Distil a small decoder from a model's own: it learns to give the same images, for previews and fast decoding."""

    data: str  # Directory with images like those of the model, or a built-in dataset: shapes, emoji.
    # Model whose autoencoder is the teacher: a name, a directory, or a checkpoint file. Default: the embedded model.
    model: Annotated[str | None, optional("MODEL")] = None
    out: Path = Path("runs/tiny-decoder")  # Directory for checkpoints, logs and the finished decoder.
    resolution: int = 64  # Image size in pixels; a decoder of convolutions then works at any size.
    width: int = 64  # Channels of every layer; 64 is that of TAESD.
    blocks: int = 3  # Residual blocks per level; 3 as in TAESD.
    perceptual: tuple[Path, ...] = ()  # One or two files with LPIPS weights, or the directory of a CLIP or an autoencoder.
    perceptual_weight: float = 0.1  # Weight of the perceptual distance; absolute, squared and gradient error have weight 1.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(max_train_steps=10_000, batch_size=8, learning_rate=5e-4, weight_decay=0.0, sample_every=1000)
    )

    def __post_init__(self) -> None:
        for name in ("width", "blocks"):
            if getattr(self, name) < 1:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
