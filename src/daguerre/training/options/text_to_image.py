"""Options of `daguerre train text-to-image`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import DiffusionLoss, LoopConfig, optional
from daguerre.training.options.images import BucketedTrainingImageOptions
from daguerre.training.options.machine import MachineOptions


@dataclass(frozen=True)
class TextToImageRecipe:
    """Fine-tune the UNet of a latent diffusion model on images with captions.

    Captions come from metadata.jsonl, from .txt files next to the images, or from the names of class folders. The same command resumes an
    interrupted run.
    """

    data: str  # Directory with the images, shards, or their address.
    out: Path = Path("runs/text-to-image")  # Directory for checkpoints, logs and the finished model.
    model: Annotated[str | None, optional("MODEL")] = None  # Name or directory of the model to fine-tune. Default: the embedded model.
    from_scratch: bool = False  # Start from a UNet with random weights.
    unet_channels: tuple[int, ...] = ()  # With --from-scratch: channels of each level of the UNet, such as 64 128. Default: the model's.
    # With --from-scratch: residual blocks of each level of the UNet. Default: the model's.
    unet_blocks: Annotated[int | None, optional("INT")] = None
    resolution: Annotated[int | None, optional("INT")] = None  # Image size in pixels. Default: the model's own.
    crops_per_image: int = 4  # Number of random crops of each image that are encoded and cached.
    cache: bool = True  # Encode all images once before training; without the cache every step encodes new crops.
    images: tyro.conf.OmitArgPrefixes[BucketedTrainingImageOptions] = field(default_factory=BucketedTrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(max_train_steps=2000, batch_size=16, learning_rate=1e-4, mixed_precision="auto")
    )
    loss: tyro.conf.OmitArgPrefixes[DiffusionLoss] = field(default_factory=DiffusionLoss)

    def __post_init__(self) -> None:
        if (self.unet_channels or self.unet_blocks is not None) and not self.from_scratch:
            raise DaguerreError("--unet-channels and --unet-blocks set the size of a new UNet; add --from-scratch, or remove them.")
