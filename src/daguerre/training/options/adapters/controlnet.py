"""Options of `daguerre train controlnet`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.training.config import DiffusionLoss, LoopConfig, optional
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions


@dataclass(frozen=True)
class ControlNetRecipe:
    """Train a ControlNet: a network that makes a model's images follow a condition map, such as edges. The model itself stays as it is.

    Captions come from metadata.jsonl, from .txt files next to the images, or from the names of class folders. The same command resumes an
    interrupted run.
    """

    data: str  # Directory with images and captions, or a built-in dataset: shapes, emoji.
    # The condition map: canny, lines, softedge, scribble, tile, grey, blur or colours, which are computed from the images; or a directory
    # of PNG maps with the names and sizes of the images.
    control: str
    out: Path = Path("runs/controlnet")  # Directory for checkpoints, logs and the finished ControlNet, which has the directory's name.
    model: Annotated[str | None, optional("MODEL")] = None  # Name or directory of the model that it is for. Default: the embedded model.
    # Continue from this ControlNet. Default: a copy of the model's encoder.
    init_controlnet: Annotated[Path | None, optional("PATH")] = None
    resolution: Annotated[int | None, optional("INT")] = None  # Image size in pixels. Default: the model's own.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(
            max_train_steps=5000, batch_size=4, learning_rate=1e-5, lr_scheduler="constant", ema_decay=0, mixed_precision="auto"
        )
    )
    # Half of the captions are left out, so that the network learns to read the map itself (section 3.3 of the paper).
    loss: tyro.conf.OmitArgPrefixes[DiffusionLoss] = field(default_factory=lambda: DiffusionLoss(caption_dropout=0.5))
