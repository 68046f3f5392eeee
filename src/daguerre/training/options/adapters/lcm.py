"""Options of `daguerre train lcm`. No torch."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import LoopConfig, optional
from daguerre.training.options.adapters.lora import LoraLayerOptions, require_loss_scaling
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions


@dataclass(frozen=True)
class ConsistencyLoss:
    """What a consistency model learns from its teacher."""

    # Guidance scale of the teacher, which the images then have without guidance. Default: the model's own.
    guidance_scale: Annotated[float | None, optional("FLOAT")] = None
    loss_type: Literal["huber", "l2"] = "huber"  # Distance of two latents: pseudo-Huber, or the squared error.
    huber_c: float = 1e-3  # With huber: below this difference it is like the squared error, above like the absolute one.

    def __post_init__(self) -> None:
        if self.guidance_scale is not None and not 1 <= self.guidance_scale < inf:
            raise DaguerreError(f"guidance_scale is {self.guidance_scale:g}; it must be 1 or more, and 1 is without guidance.")
        if not 0 < self.huber_c < inf:
            raise DaguerreError(f"huber_c is {self.huber_c:g}; it must be above 0, such as 0.001.")


@dataclass(frozen=True)
class LCMRecipe:
    """Distil a model to 4 steps without guidance, as a LoRA: latent consistency distillation.

    The model itself is the teacher. The LoRA sets its sampler, steps and guidance by itself wherever it is used. The same command resumes
    an interrupted run.
    """

    data: str = "emoji"  # Directory with images and captions like those of the model, or a built-in dataset: emoji, shapes.
    out: Path = Path("runs/lcm")  # Directory for checkpoints, logs and the finished LoRA, whose file has the directory's name.
    model: Annotated[str | None, optional("MODEL")] = None  # Name or directory of the model to distil. Default: the embedded model.
    resolution: Annotated[int | None, optional("INT")] = None  # Image size in pixels. Default: the model's own.
    lora: tyro.conf.OmitArgPrefixes[LoraLayerOptions] = field(default_factory=lambda: LoraLayerOptions(rank=16, modules="."))
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(
            max_train_steps=1000, batch_size=8, learning_rate=2e-4, lr_warmup_steps=20, ema_decay=0.95, mixed_precision="auto"
        )
    )
    loss: tyro.conf.OmitArgPrefixes[ConsistencyLoss] = field(default_factory=ConsistencyLoss)

    def __post_init__(self) -> None:
        require_loss_scaling(self.lora, self.loop)
