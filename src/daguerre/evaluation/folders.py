"""Measures two folders of images: the distance between them, and how well the images match their captions.

images, reference ─► features of a network ─► Fréchet distance, KID
images, captions  ─► CLIP                  ─► CLIP score
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import FolderDataset, open_image, to_tensor
from daguerre.data.catalog import print_summary
from daguerre.data.fitting import fit_image
from daguerre.data.folder import FolderItem
from daguerre.errors import DaguerreError
from daguerre.evaluation.clip_scorer import ClipScorer, load_clip_scorer
from daguerre.evaluation.config import EvaluateConfig
from daguerre.evaluation.report import check_out, markdown_table, write_report
from daguerre.metrics import Interval, bootstrap, clip_score, cosine, frechet_distance, kernel_distance
from daguerre.models.inception import INCEPTION_SIDE, Inception, resize_like_tensorflow
from daguerre.progress import track
from daguerre.training.objectives.perceptual import PerceptualLoss, load_perceptual
from daguerre.weights.catalog import DEFAULT, find
from daguerre.weights.inception import load_inception

FOLDER_BATCH = 16  # images per call of a network
FEW_IMAGES = 2048  # fewer images than Inception has features: the distance is far above that of many images


class Embedder(Protocol):
    """Embeds squares x (N, 3, H, W) as features (N, D). size: their side in pixels; None: the network resizes whole images itself."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FolderComparison:
    """A distance of two sets of images; the baseline is that of two halves of the reference."""

    features: str
    images: int
    reference: int
    frechet: float
    kid: float | None  # only on Inception, for whose features its kernel was chosen
    halves_frechet: float | None


@dataclass(frozen=True)
class FolderReport:
    """The results of `daguerre evaluate --images`."""

    images: str
    reference: str | None
    comparison: FolderComparison | None
    scorer: str | None
    clip_score: Interval | None
    captioned: int

    def markdown(self) -> str:
        parts = [f"# {self.images}" + (f", compared with {self.reference}" if self.reference else "")]
        if (found := self.comparison) is not None:
            rows = [[f"{found.images} images", f"{found.frechet:.6g}", "" if found.kid is None else f"{1000 * found.kid:.3f}"]]
            if found.halves_frechet is not None:
                rows.append([f"baseline: two halves of the {found.reference} reference images", f"{found.halves_frechet:.6g}", ""])
            parts += [f"Distances on the features of {found.features}; 0 is equal.", markdown_table(["", "Fréchet", "KID × 1000"], rows)]
            if min(found.images, found.reference) < FEW_IMAGES:
                parts.append("With few images the Fréchet distance is too large; compare only numbers of equally many images.")
        if self.clip_score is not None:
            parts.append(f"CLIP score of {self.captioned} images with their captions by `{self.scorer}`: {self.clip_score} (0 to 2.5).")
        return "\n\n".join(parts)


def run_folders(config: EvaluateConfig) -> FolderReport:
    """Measure the folder `config.images`: against the folder `config.data`, if given, and against its captions by a CLIP, if given.

    Raises:
        DaguerreError: a folder has no images, or fewer than two for a distance; the weights are others; nothing is to be measured.
    """
    assert config.images is not None
    check_out(config.out, "evaluation", "report.json")
    if config.data is None and config.scorer is None:
        raise DaguerreError("Nothing to measure: give --data, a folder to compare with, or --clip, a CLIP that scores the captions.")
    images, reference = (_open(folder, config) for folder in (config.images, config.data))
    assert images is not None
    embed = None if reference is None else _embedder(config)
    comparison = None if reference is None or embed is None else compare_folders(embed, images, reference)
    scorer = None if config.scorer is None else load_clip_scorer(config.scorer)
    captioned = [item for item in images.items if item.caption.strip()]
    if scorer is not None and not captioned:
        raise DaguerreError(f"No image in '{config.images}' has a caption, so --clip has nothing to score; write captions in .txt files.")
    score = None if scorer is None else bootstrap(score_captions(scorer, images.part(captioned)))
    reference_name = None if reference is None else str(config.data)
    report = FolderReport(str(config.images), reference_name, comparison, scorer and scorer.name, score, len(captioned))
    with atomic_path(config.out) as temporary:
        write_report(temporary, asdict(report), report.markdown())
    return report


def compare_folders(embed: Embedder, images: FolderDataset, reference: FolderDataset) -> FolderComparison:
    """The distances between two folders. Raises DaguerreError if one has fewer than two images."""
    for source in (images, reference):
        if len(source) < 2:
            raise DaguerreError(f"'{source.folder}' has only one image; a distance needs two or more.")
    x, y = (_embed(embed, source) for source in (images, reference))
    halves = frechet_distance(y[::2], y[1::2]) if len(y) >= 4 else None
    kid = kernel_distance(x, y).mean if isinstance(embed, InceptionEmbedder) else None
    return FolderComparison(embed.name, len(x), len(y), frechet_distance(x, y), kid, halves)


def score_captions(scorer: ClipScorer, source: FolderDataset) -> Tensor:
    """The CLIP score (N,) of each image with its caption."""
    side, scores = scorer.clip.config.vision.size, []
    for items in _batches(source.items):
        x = torch.stack([to_tensor(fit_image(open_image(item.path, min_side=side), (side, side), "center")) for item in items])
        scores.append(cosine(scorer.embed_images(x)[:, None], scorer.embed_texts([item.caption for item in items])[:, None])[:, 0, 0])
    return clip_score(torch.cat(scores))


@dataclass(frozen=True)
class InceptionEmbedder:
    """The features of the Fréchet inception distance: an image of any size is stretched to 299×299 pixels by the network's own filter."""

    network: Inception
    name: str
    size: int | None = None

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x)


@dataclass(frozen=True)
class EncoderEmbedder:
    """The features of the embedded model's encoder, for squares of `size` pixels."""

    network: PerceptualLoss
    size: int | None
    name: str = "the embedded model's encoder"

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network.embed(x)


def _embedder(config: EvaluateConfig) -> Embedder:
    if config.features is None:
        return EncoderEmbedder(load_perceptual((find(DEFAULT),)), config.resolution)
    return InceptionEmbedder(load_inception(config.features), f"Inception ({config.features.name})")


def _embed(embed: Embedder, source: FolderDataset) -> Tensor:
    """The features (N, D) of all images."""
    features = []
    for items in track(list(_batches(source.items)), f"embedding {source.folder}"):
        x = []
        for item in items:
            image = open_image(item.path)
            if embed.size is None:
                x.append(resize_like_tensorflow(to_tensor(image)[None], INCEPTION_SIDE)[0])
            else:
                x.append(to_tensor(fit_image(image, (embed.size, embed.size), "center")))
        features.append(embed(torch.stack(x)).cpu())
    return torch.cat(features)


def _open(folder: str | Path | None, config: EvaluateConfig) -> FolderDataset | None:
    if folder is None:
        return None
    source = FolderDataset(Path(folder), config.resolution, captioned=False, crop="center", skip_bad=config.skip_bad)
    print_summary(source)
    return source


def _batches(items: Sequence[FolderItem]) -> Iterator[Sequence[FolderItem]]:
    for start in range(0, len(items), FOLDER_BATCH):
        yield items[start : start + FOLDER_BATCH]
