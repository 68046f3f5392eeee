"""What trainings and evaluations can be told: plain values that a command line is made of, so that nothing here imports torch."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.pipelines.request import Request


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast and how carefully. Presets derive with `dataclasses.replace`."""

    max_train_steps: int = 1000  # optimiser steps in all
    batch_size: int = 64  # pictures per step, over all processes and accumulated parts together
    gradient_accumulation_steps: int = 1  # parts that a step's batch is split into, for less memory
    learning_rate: float = 1e-4
    lr_warmup_steps: int = 100  # steps of linear rise
    lr_decay: float = 0.2  # share of the run, at its end, over which the rate falls linearly to 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0  # gradient norm; 0 = off
    ema_decay: float = 0.999  # 0 = off
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"  # auto: bf16 where processor or GPU have instructions for it, else no
    compile: bool = False  # torch.compile the networks; needs a C++ compiler on a CPU
    workers: int = 1  # that draw batches ahead: a thread, or so many processes
    seed: int = 0
    log_every: int = 20
    sample_every: int = 500  # 0 = never
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("max_train_steps", "batch_size", "gradient_accumulation_steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        for name in ("learning_rate", "lr_warmup_steps", "weight_decay", "max_grad_norm", "sample_every", "workers", "seed"):
            if not 0 <= getattr(self, name) < inf:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name, share in (
            ("lr_decay", self.lr_decay),
            ("ema_decay", self.ema_decay),
            ("the first of betas", self.betas[0]),
            ("the second", self.betas[1]),
        ):
            if not 0 <= share <= 1:
                raise DaguerreError(f"{name} is {share}; it must lie between 0 and 1.")
        if self.batch_size % self.gradient_accumulation_steps:
            raise DaguerreError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.gradient_accumulation_steps}.")

    def rate(self, step: int) -> float:
        """The learning rate of step `step`: a linear rise, a plateau, a linear fall."""
        rise = (step + 1) / max(self.lr_warmup_steps, 1)
        fall = (self.max_train_steps - step) / max(self.lr_decay * self.max_train_steps, 1)
        return self.learning_rate * min(1.0, rise, fall)


@dataclass(frozen=True)
class DiffusionLoss:
    """How noise levels are drawn and weighed."""

    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    shift: float = 1.0  # s: a share u of all times becomes s·u / (1 + (s − 1)·u); above 1 there is more noise
    snr_gamma: float | None = None  # γ, 5 in the paper; None weighs every level alike
    weight_floor: float = 0.05  # min-SNR's weight of pure noise, 0 in the paper, where sampling from zero terminal SNR starts
    caption_dropout: float = 0.1  # share of captions replaced by the empty one


@dataclass(frozen=True)
class LatentRecipe:
    """What every recipe of three stages is told. Run again with the same values, it goes on where it was stopped."""

    out: Path
    model: Annotated[str | None, tyro.conf.arg(name="from")] = None  # a model that the last stage trains on; none: all three from nothing
    seed: int = 0
    autoencoder_steps: int | None = None  # None: the preset's
    clip_steps: int | None = None
    diffusion_steps: int | None = None


@dataclass(frozen=True)
class EmojiRecipe(LatentRecipe):
    """Train the embedded model on emoji: autoencoder, CLIP, diffusion."""

    out: Path = Path("runs/emoji")
    preset: Literal["cpu", "gpu"] = "cpu"  # two cores and some hours, or one large GPU and 20 minutes


@dataclass(frozen=True)
class ShapesRecipe(LatentRecipe):
    """Train a small model on drawn shapes, every stage, on two cores."""

    out: Path = Path("runs/shapes")


@dataclass(frozen=True)
class JudgeRecipe:
    """Train the CLIP that `daguerre evaluate` measures with."""

    out: Path = Path("runs/judge")
    resolution: int = 64  # pixels
    max_train_steps: int | None = None  # None: the preset's
    seed: int = 1000


@dataclass(frozen=True)
class TextToImageRecipe:
    """Train on a folder of pictures with captions (metadata.jsonl, .txt beside, or one folder per class)."""

    data: Path
    out: Path = Path("runs/text-to-image")
    model: Annotated[str | None, tyro.conf.arg(name="from", metavar="MODEL")] = None  # whose parts are used; none: the embedded one
    from_scratch: bool = False  # start the UNet anew instead of continuing
    resolution: int | None = None  # pixels a side; none: the model's own
    crops_per_image: int = 4  # crops of each picture that are encoded
    cache: bool = True  # encode pictures once; without it every step draws new crops
    gradient_checkpointing: bool = False  # less memory, a third slower
    skip_bad: bool = False  # skip and count unreadable pictures and missing captions instead of stopping
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(max_train_steps=2000, batch_size=16, learning_rate=1e-4, mixed_precision="auto")
    )
    loss: tyro.conf.OmitArgPrefixes[DiffusionLoss] = field(default_factory=DiffusionLoss)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how well a model draws what it is asked for, and whether it copies."""

    model: str | None = None  # a name or a folder; the embedded model if not given
    scorer: Path = Path("runs/judge/model")  # a folder from `daguerre train judge`
    out: Path = Path("runs/evaluation")  # report.json, report.md and sheets of pictures
    data: Literal["emoji", "shapes"] = "emoji"  # what the model draws; shapes are measured, without the judge that --judge names
    num_images: int = 125  # prompts of each kind
    steps: int = 20
    sampler: str = "dpmpp_2m"
    guidance_scale: float | None = None  # None: the model's own
    seed: int = 0
    training_images: int = 8192  # searched for neighbours

    def __post_init__(self) -> None:
        for name in ("num_images", "training_images"):
            if getattr(self, name) < 1:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
