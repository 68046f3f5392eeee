"""Options of `daguerre train prior`. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import LoopConfig, optional
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.machine import MachineOptions

PRIOR_LOOP = LoopConfig(
    max_train_steps=3000,
    batch_size=32,
    learning_rate=1e-3,
    betas=(0.9, 0.95),
    ema_decay=0.998,
    mixed_precision="auto",
    sample_every=1000,
    checkpoint_every=500,
)
NETWORK_FIELDS = ("kind", "condition", "map", "resolution", "num_images", "hidden_size", "layers", "heads", "dropout")
TEXT_FIELDS = ("vocab_size", "max_text_tokens", "pkeep")


@dataclass(frozen=True)
class PriorRecipe:
    """Train an autoregressive prior over the codes of a VQ-VAE or a VQGAN. The same command resumes an interrupted run."""

    first_stage: Path  # Directory of the VQ-VAE or VQGAN, or a published checkpoint file.
    data: str  # Directory with images, shards, their address, or a built-in dataset: shapes, emoji.
    out: Path = Path("runs/prior")  # Directory for checkpoints, logs and the finished model.
    kind: Literal["transformer", "pixelcnn", "pixelsnail"] = "transformer"  # Network of the prior.
    # What the prior is conditioned on. A class is a folder's name, a caption, or the kind of a rendered shape.
    condition: Literal["none", "class", "text", "map", "coordinates"] = "none"
    map: Literal["semantic", "depth", "edges", "small"] = "semantic"  # Kind of condition map, with --condition map.
    maps: Annotated[Path | None, optional("PATH")] = None  # Directory with semantic or depth maps: PNG files under the names of the images.
    # Directory of the first stage of the maps. By default a small one is trained first.
    map_first_stage: Annotated[Path | None, optional("PATH")] = None
    resolution: int = 64  # Image size in pixels.
    num_images: int = 20_000  # Number of images that are encoded once for training; a folder gives at most ten crops of each image.
    eval_images: int = 1000  # Number of images on which the final code length is measured; a folder gives each image once.
    hidden_size: int = 192  # Channels of every layer.
    layers: int = 6  # Number of layers.
    heads: int = 6  # Number of attention heads; they must divide the hidden size.
    dropout: float = 0.0  # Dropout rate inside the network.
    vocab_size: int = 640  # Largest number of tokens that the tokenizer learns.
    max_text_tokens: int = 24  # Number of tokens of one text, including the start and end tokens.
    pkeep: float = 1.0  # Share of the input codes that are kept; the others are replaced by random codes.
    images: tyro.conf.OmitArgPrefixes[TrainingImageOptions] = field(default_factory=TrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(default_factory=lambda: PRIOR_LOOP)

    def __post_init__(self) -> None:
        if self.kind != "transformer" and self.condition not in ("none", "class"):
            raise DaguerreError(f"A {self.kind} supports the conditions none and class, not {self.condition}; use --kind transformer.")
        if self.heads < 1 or self.layers < 1 or self.hidden_size % self.heads:
            raise DaguerreError(
                f"layers is {self.layers}, heads is {self.heads} and hidden_size is {self.hidden_size}; all must be 1 or more, and heads "
                "must divide hidden_size."
            )
        if self.num_images < self.loop.batch_size or self.eval_images < 1:
            raise DaguerreError(
                f"num_images is {self.num_images} and eval_images is {self.eval_images}; use at least {self.loop.batch_size} and 1."
            )
        if self.condition != "map" and (self.maps or self.map_first_stage):
            raise DaguerreError("--maps and --map-first-stage apply only to --condition map; remove them or set the condition.")

    @property
    def network(self) -> dict[str, object]:
        """The values that determine the trained weights, apart from data, first stage and loop."""
        return {name: getattr(self, name) for name in (*NETWORK_FIELDS, *TEXT_FIELDS)}
