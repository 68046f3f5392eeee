"""Options of `daguerre train decoder`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

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
