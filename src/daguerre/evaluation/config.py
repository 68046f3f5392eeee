"""Options of `daguerre evaluate` and `daguerre reconstruct`, without torch, so that `--help` stays instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.share import parse_shard

RENDERED = ("emoji", "shapes")
RENDERED_IMAGES = (*RENDERED, "emoji-faces")  # also those without prompts


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how well a model's images match their prompts, and whether it copies training images.

    With --data DIRECTORY: the loss of the model on these images. With --images DIRECTORY: these images instead of a model's, their distance
    to those of --data DIRECTORY, and with --clip how well they match their captions. With --bits-per-dim: the likelihood of --data under a
    diffusion model of pixels.
    """

    model: str | None = None  # Name or directory of a model. Default: the embedded model.
    # Directory of a CLIP, such as one of `daguerre train clip-scorer`; shapes need none. Default for emoji: the embedded one.
    scorer: Annotated[Path | None, tyro.conf.arg(aliases=["--clip"], help_behavior_hint="")] = None
    out: Path = Path("runs/evaluation")  # Directory for report.json, report.md and image sheets.
    # Dataset that the model was trained on: emoji, scored by CLIP, or shapes, measured; or a directory of images with captions that it was
    # not trained on. With --images also an .npz file of statistics. Default: emoji.
    data: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None
    # Measure the variational bound of a diffusion model of pixels in bits per dimension, on a directory of images or built-in ones: emoji,
    # emoji-faces, shapes. Each image takes as many calls of the network as the model has steps.
    bits_per_dim: bool = False
    images: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None  # Directory of images to measure instead of a model.
    # With --images and --data: weights of Inception, as pytorch-fid and torch-fidelity publish them, for the Fréchet inception distance.
    # Default: the encoder of the embedded model.
    features: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    resolution: int = 64  # With --images: side in pixels for the encoder of the embedded model.
    # With --images: folder that keeps what the network computes. A measurement that was killed continues from it.
    cache: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    # With --cache: compute only this share of it, such as 0/4; the process that finishes last writes the report.
    shard: Annotated[str | None, tyro.conf.arg(metavar="INDEX/COUNT", help_behavior_hint="")] = None
    skip_bad: bool = False  # Skip unreadable images instead of stopping.
    num_images: int = 125  # Number of prompts of each kind, or with --bits-per-dim of images.
    steps: int = 20  # Number of sampling steps.
    sampler: str | None = None  # Default: the sampler of the model.
    guidance_scale: float | None = None  # Classifier-free guidance scale. Default: the model's own.
    seed: int = 0  # Seed of the prompts and the noise.
    training_images: int = 8192  # Number of training images that are searched for near copies.
    # Number of CPU threads. Default: one for each free core.
    threads: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None

    def __post_init__(self) -> None:
        for name in ("num_images", "training_images", "resolution"):
            if getattr(self, name) < 1:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.images is not None and self.model is not None:
            raise DaguerreError("--images measures images instead of a model; leave out --model, or --images.")
        if self.images is not None and self.data in RENDERED:
            raise DaguerreError(f"--images are compared with a directory of images, not with {self.data}; give --data a directory.")
        if self.bits_per_dim and (self.images is not None or self.data is None):
            raise DaguerreError("--bits-per-dim measures a model on the images of --data; give --data, and leave out --images.")
        if self.cache is not None and self.images is None:
            raise DaguerreError("--cache keeps the features of --images; give --images, or leave out --cache.")
        if self.shard is not None and self.cache is None:
            raise DaguerreError("--shard computes a share of --cache; give both.")
        parse_shard(self.shard)
        if self.images is None and self.features is not None:
            raise DaguerreError("--features compares the directories of --images and --data; give both.")

    @property
    def rendered(self) -> Literal["emoji", "shapes"]:
        """The built-in dataset of a model's prompts."""
        return "shapes" if self.data == "shapes" else "emoji"


DEFAULT_RESOLUTION = 64


@dataclass(frozen=True)
class ReconstructConfig:
    """Encode and decode images with a first stage and measure the reconstructions; with several models, next to each other."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """An image of any size, a folder of images, or the built-in dataset `shapes`, `emoji` or `emoji-faces`."""
    model: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-m"], metavar="MODEL [MODEL ...]", help_behavior_hint="(required)")]
    """The folders or files of first stages, or of models with one; names from `daguerre models`, or OWNER/NAME on the hub."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("reconstruction")
    """Where to write report.json, report.md and side-by-side.png."""
    latent: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Also write the latent of a single image to this file: .safetensors or .npy."""
    random: int = 0
    """Explore the latent space: decode this many random latents (random codes of a codebook) and write random.png."""
    interpolate_to: Annotated[Path | None, tyro.conf.arg(metavar="IMAGE", help_behavior_hint="")] = None
    """Explore: decode latents between those of the image DATA and of this image, and write interpolation.png."""
    unseen: Annotated[str | None, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = None
    """Explore: compare the error on DATA, the training images, with that on these images, which training did not use."""
    resolution: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Image side in pixels. Default: 64; of a single image its own size."""
    num_images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Number of images."""
    perceptual: tuple[Path, ...] = ()
    """Features for the perceptual distance: files with the weights of LPIPS, or the folder of a CLIP or an autoencoder. Default: the
    encoder of the embedded model."""
    seed: Annotated[int, tyro.conf.arg(aliases=["-s"])] = 0
    """Seed for the selection of images."""
    skip_bad: bool = False
    """Skip unreadable images instead of stopping."""
    threads: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Number of CPU threads. Default: one for each free core."""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise DaguerreError(f"num_images is {self.num_images}; it must be 1 or more.")
        if self.random < 0:
            raise DaguerreError(f"random is {self.random}; give the number of latents, 1 or more.")
        if self.latent is not None and self.explores:
            raise DaguerreError("--latent excludes --random, --interpolate-to and --unseen.")
        if not self.model:
            raise DaguerreError("There is no model; name at least one with --model.")
        if self.resolution is not None and self.resolution < 1:
            raise DaguerreError(f"resolution is {self.resolution}; it must be 1 or more.")

    @property
    def explores(self) -> bool:
        """Whether to explore the latent space instead of comparing reconstructions with other methods."""
        return bool(self.random or self.interpolate_to or self.unseen)
