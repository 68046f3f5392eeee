"""Options of `daguerre train ldm`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import DiffusionLoss, LoopConfig, optional
from daguerre.training.options.ddpm import UNetShape
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions

LDM_LOOP = LoopConfig(
    max_train_steps=10_000, batch_size=32, learning_rate=4e-4, lr_warmup_steps=200, mixed_precision="auto", sample_every=500
)


@dataclass(frozen=True)
class LDMRecipe:
    """Train a latent diffusion model on the latents of your own first stage, unconditional or for a task. The same command resumes it."""

    first_stage: Path  # Directory of a first stage, from `daguerre train kl`, `vqgan` or another, or a published checkpoint file.
    data: str  # Directory with images, shards, their address, or a built-in dataset: shapes, emoji, emoji-faces.
    out: Path = Path("runs/ldm")  # Directory for checkpoints, logs and the finished model.
    resolution: int = 64  # Image size in pixels.
    # What the model is conditioned on. A class is the name of a subfolder or the kind of a built-in image. For text, and for the boxes of a
    # layout, a transformer is trained from random weights with the UNet. The others are images: a map (see --map), the image at a lower
    # resolution, with a hole, or without colours; and the CLIP embedding of the image (see --image-encoder).
    condition: Literal["none", "class", "text", "map", "layout", "low-res", "masked", "grey", "clip-image"] = "none"
    # With --condition map: kind of the maps. Semantic, depth and pose maps of a directory are read from --maps; others are computed.
    map: Literal["semantic", "depth", "pose", "edges", "canny", "lines", "softedge", "scribble"] = "edges"
    # With --condition map: directory with PNG maps under the names of the images, of their sizes. With --condition layout: text files under
    # these names, with one "CLASS LEFT TOP RIGHT BOTTOM" per line, in shares of the sides.
    maps: Annotated[Path | None, optional("PATH")] = None
    scale: int = 4  # With --condition low-res: how many times the model enlarges each side; divides the factor of the first stage.
    # With --condition clip-image: directory of a CLIP. Default: the embedded one, which knows emoji.
    image_encoder: Annotated[Path | None, optional("PATH")] = None
    prediction: Literal["epsilon", "v", "x0"] = "epsilon"  # What the network predicts: the noise, v, or the clean latent.
    num_images: int = 20_000  # Number of images that are encoded once for training; a folder gives at most ten crops of each image.
    vocab_size: int = 2048  # With --condition text: largest number of tokens that the tokenizer learns.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    shape: tyro.conf.OmitArgPrefixes[UNetShape] = field(default_factory=lambda: UNetShape((128, 192), 1, (0, 1)))
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=lambda: LDM_LOOP)
    loss: tyro.conf.OmitArgPrefixes[DiffusionLoss] = field(default_factory=DiffusionLoss)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)

    def __post_init__(self) -> None:
        if self.maps is not None and self.condition not in ("map", "layout"):
            raise DaguerreError("--maps applies only to --condition map and --condition layout; remove it or set the condition.")
        if self.image_encoder is not None and self.condition != "clip-image":
            raise DaguerreError("--image-encoder applies only to --condition clip-image; remove it or set the condition.")
        if self.scale < 2:
            raise DaguerreError(f"scale is {self.scale}; a model enlarges each side at least 2 times.")
        if self.num_images < self.loop.batch_size:
            raise DaguerreError(f"num_images is {self.num_images}; use at least as many as --batch-size, {self.loop.batch_size}.")
        if self.vocab_size < 300:
            raise DaguerreError(f"vocab_size is {self.vocab_size}; it must be 300 or more: a tokenizer has one token for every byte.")
