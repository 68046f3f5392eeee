"""Options of the recipes that train on a directory of images. No torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from daguerre.errors import DaguerreError
from daguerre.training.config import optional


@dataclass(frozen=True)
class TrainingImageOptions:
    """How the images of a directory become training images. Rendered datasets have no such options."""

    # How an image becomes a square: a random or the middle part of its longer side, padded with white, or stretched.
    crop: Literal["random", "center", "pad", "stretch"] = "random"
    mirror: bool = False  # Mirror a random half of the images left to right.
    validation_fraction: float = 0.0  # Share of the images, chosen by their content, that is not trained on; the log has their loss.
    skip_bad: bool = False  # Skip unreadable images and missing captions instead of stopping.
    # Of shards at an address: largest size, in GB, of those that are kept after they were fetched. Default: all are kept.
    shard_cache_size: Annotated[float | None, optional("FLOAT")] = None

    def __post_init__(self) -> None:
        if self.shard_cache_size is not None and not self.shard_cache_size > 0:
            raise DaguerreError(f"--shard-cache-size is {self.shard_cache_size:g} GB; it must be above 0.")
        if not 0 <= self.validation_fraction < 1:
            raise DaguerreError(f"validation_fraction is {self.validation_fraction}; it must be at least 0 and below 1.")

    @property
    def reading(self) -> dict[str, Any]:
        """The options of a `FolderDataset`."""
        kept = {} if self.shard_cache_size is None else {"shard_cache_size": self.shard_cache_size}
        return {"crop": self.crop, "mirror": self.mirror, "skip_bad": self.skip_bad, **kept}


@dataclass(frozen=True)
class BucketedTrainingImageOptions(TrainingImageOptions):
    # How an image becomes a square: a random or the middle part of its longer side, padded with white, or stretched; or, with bucket, a
    # rectangle near the image's aspect ratio, the same for all images of a batch.
    crop: Literal["random", "center", "pad", "stretch", "bucket"] = "random"  # pyright: ignore[reportIncompatibleVariableOverride]
