"""Options of `daguerre train textual-inversion`. No torch."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import DiffusionLoss, LoopConfig, optional
from daguerre.training.options.images import BucketedTrainingImageOptions
from daguerre.training.options.machine import MachineOptions


@dataclass(frozen=True)
class TextualInversionRecipe:
    """Learn a new word for prompts from a few images of one thing or style; the model stays as it is.

    The images need no captions: templates such as "a photo of a WORD" take their position. The same command resumes an interrupted run.
    """

    data: str  # Directory with the images, shards, or their address; 3 to 10 images suffice.
    word: str  # The new word, by which prompts use what the images show, such as mycat.
    out: Path = Path("runs/textual-inversion")  # Directory for checkpoints, logs and the embedding, whose file has the word's name.
    model: Annotated[str | None, optional("MODEL")] = None  # Name or directory of the model that it is for. Default: the embedded model.
    num_vectors: int = 1  # Number of vectors of the word, each of which takes one position in a prompt; more can learn more.
    # A known word for the kind of thing, such as cat, whose vectors are the start. Default: random vectors.
    initial_word: Annotated[str | None, optional("WORD")] = None
    learnable_property: Literal["object", "style"] = "object"  # Whether the templates name a thing or a style.
    # Text file with a template on each line: {} is the word, [filewords] the image's caption. Default: built-in ones.
    templates: Annotated[Path | None, optional("FILE")] = None
    resolution: Annotated[int | None, optional("INT")] = None  # Image size in pixels. Default: the model's own.
    crops_per_image: int = 1  # Number of random crops of each image that are encoded and cached.
    cache: bool = True  # Encode all images once before training; without the cache every step encodes new crops.
    images: tyro.conf.OmitArgPrefixes[BucketedTrainingImageOptions] = field(default_factory=BucketedTrainingImageOptions)
    machine: tyro.conf.OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(
            max_train_steps=2000,
            batch_size=4,
            learning_rate=5e-3,
            lr_warmup_steps=0,
            weight_decay=0,
            ema_decay=0,
            mixed_precision="auto",
        )
    )
    loss: tyro.conf.OmitArgPrefixes[DiffusionLoss] = field(default_factory=lambda: DiffusionLoss(caption_dropout=0))

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s,:()\[\]{}|/\\]+", self.word):
            raise DaguerreError(
                f"word is {self.word!r}; it must be one word without spaces, commas, brackets and the like, such as mycat or <cat>."
            )
        for name in ("num_vectors", "crops_per_image"):
            if getattr(self, name) < 1:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
