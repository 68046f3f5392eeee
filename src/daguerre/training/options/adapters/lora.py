"""Options of `daguerre train lora`. No torch."""

import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import DiffusionLoss, LoopConfig, optional
from daguerre.training.options.images import BucketedTrainingImageOptions
from daguerre.training.options.machine import MachineOptions


@dataclass(frozen=True)
class LoraLayerOptions:
    """Which layers a LoRA changes, and how."""

    rank: int = 8  # Rank of each layer's change: more can learn more, and gives a larger file.
    alpha: Annotated[float | None, optional("FLOAT")] = None  # The change is scaled by alpha / rank. Default: the rank.
    # Regular expression for the UNet's layers, searched in their diffusers paths; "attn" is attention only, "." is every layer.
    modules: str = "attentions"
    # Precision of the model, which is not trained; the LoRA itself is float32. Half precision needs half the memory.
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    dora: bool = False  # Learn the size of each layer's weights apart from their direction (DoRA).
    init_lora: Annotated[Path | None, optional("FILE")] = None  # Continue from this LoRA, with its layers, rank and alpha.

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise DaguerreError(f"rank is {self.rank}; it must be 1 or more.")
        if self.alpha is not None and not 0 < self.alpha < inf:
            raise DaguerreError(f"alpha is {self.alpha}; it must be above 0, such as {self.rank}.")
        try:
            re.compile(self.modules)
        except re.error as error:
            raise DaguerreError(f"modules is {self.modules!r}, which is no regular expression ({error}); an example is 'attn'.") from error


@dataclass(frozen=True)
class LoraOptions(LoraLayerOptions):
    """Which layers a LoRA changes, and how it is trained on images."""

    train_text_encoder: bool = False  # Train the linear layers of the text encoders, too.
    noise_offset: float = 0.0  # Adds one random value per channel, times this, to the noise, for very dark or bright images; 0.05 is usual.
    shuffle_captions: bool = False  # Shuffle the parts of a caption that commas separate, in another order in each step.
    keep_tokens: int = 0  # With --shuffle-captions: number of first parts that stay where they are.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise_offset <= 1:
            raise DaguerreError(f"noise_offset is {self.noise_offset}; it must be between 0 and 1.")
        if self.keep_tokens < 0:
            raise DaguerreError(f"keep_tokens is {self.keep_tokens}; it must be 0 or more.")


def require_loss_scaling(lora: LoraLayerOptions, loop: LoopConfig) -> None:
    """Raise DaguerreError if gradients pass through a float16 model without loss scaling: small ones would become 0."""
    if lora.base_dtype == "float16" and loop.mixed_precision != "fp16":
        raise DaguerreError(
            "base_dtype float16 needs --mixed-precision fp16, whose loss scaling keeps small gradients from becoming 0; without a GPU use "
            "--base-dtype bfloat16."
        )


@dataclass(frozen=True)
class LoraRecipe:
    """Train a LoRA: a small file that changes a model, from images with captions.

    Captions come from metadata.jsonl, from .txt files next to the images, or from the names of class folders. The same command resumes an
    interrupted run.
    """

    data: str  # Directory with the images, shards, or their address.
    out: Path = Path("runs/lora")  # Directory for checkpoints, logs and the finished LoRA, whose file has the directory's name.
    model: Annotated[str | None, optional("MODEL")] = None  # Name or directory of the model that it is for. Default: the embedded model.
    resolution: Annotated[int | None, optional("INT")] = None  # Image size in pixels. Default: the model's own.
    crops_per_image: int = 1  # Number of random crops of each image that are encoded and cached.
    cache: bool = True  # Encode all images once before training; without the cache every step encodes new crops.
    lora: tyro.conf.OmitArgPrefixes[LoraOptions] = field(default_factory=LoraOptions)
    images: tyro.conf.OmitArgPrefixes[BucketedTrainingImageOptions] = field(default_factory=BucketedTrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(
            max_train_steps=1000, batch_size=4, learning_rate=2e-4, lr_warmup_steps=20, ema_decay=0, mixed_precision="auto"
        )
    )
    loss: tyro.conf.OmitArgPrefixes[DiffusionLoss] = field(default_factory=DiffusionLoss)

    def __post_init__(self) -> None:
        if self.crops_per_image < 1:
            raise DaguerreError(f"crops_per_image is {self.crops_per_image}; it must be 1 or more.")
        require_loss_scaling(self.lora, self.loop)
