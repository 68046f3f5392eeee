"""Options of `daguerre train caption-variants`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.training.config import LoopConfig, optional
from daguerre.training.options.machine import MachineOptions


@dataclass(frozen=True)
class CaptionVariantsRecipe:
    """Train only the text encoder of a model, so that other wordings of a caption give the same image.

    A variant changes punctuation, letter case, articles, style words ("a photo of") and requests ("draw …, please"). No images are needed.
    The same command resumes an interrupted run.
    """

    data: str = "emoji"  # Where the captions come from: a directory of images with captions, or a built-in dataset: shapes, emoji.
    # Name or directory of the model. Default: the embedded model.
    model: Annotated[str | None, optional("MODEL")] = None
    out: Path = Path("runs/caption-variants")  # Directory for checkpoints, logs and the finished model.
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(
            max_train_steps=3000,
            batch_size=48,
            learning_rate=5e-4,
            lr_decay=0.5,
            weight_decay=0.0,
            ema_decay=0.99,
            checkpoint_every=100,
            sample_every=0,
        )
    )
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
