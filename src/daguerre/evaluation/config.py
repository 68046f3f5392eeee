"""Options of `daguerre evaluate`, without torch, so that `--help` stays instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daguerre.errors import DaguerreError


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how well a model's images match their prompts, and whether it copies training images."""

    model: str | None = None  # Name or directory of a model. Default: the embedded model.
    scorer: Path = Path("runs/clip-scorer/model")  # Directory of the CLIP trained by `daguerre train clip-scorer`; shapes need none.
    out: Path = Path("runs/evaluation")  # Directory for report.json, report.md and image sheets.
    data: Literal["emoji", "shapes"] = "emoji"  # Dataset that the model was trained on. Emoji are scored by CLIP, shapes are measured.
    num_images: int = 125  # Number of prompts of each kind.
    steps: int = 20  # Number of sampling steps.
    sampler: str | None = None  # Default: the sampler of the model.
    guidance_scale: float | None = None  # Classifier-free guidance scale. Default: the model's own.
    seed: int = 0  # Seed of the prompts and the noise.
    training_images: int = 8192  # Number of training images that are searched for near copies.

    def __post_init__(self) -> None:
        for name in ("num_images", "training_images"):
            if getattr(self, name) < 1:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
