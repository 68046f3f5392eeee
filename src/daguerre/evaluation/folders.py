"""Measures two folders of images: the distance between them, and how well the images match their captions.

images, reference ─► features of a network ─► Fréchet distance, KID, precision and recall, Inception score
images, captions  ─► CLIP                  ─► CLIP score

What a network computes for a block of images can be kept in a file. So a measurement that was killed continues, and several processes share
the work; the last one to finish adds up the blocks, in their order.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import FolderDataset, to_tensor
from daguerre.data.catalog import open_image_files, print_summary
from daguerre.data.fitting import fit_image
from daguerre.data.folders.items import FolderItem
from daguerre.errors import DaguerreError
from daguerre.evaluation.clip_scorer import ClipScorer, load_clip_scorer
from daguerre.evaluation.config import EvaluateConfig
from daguerre.evaluation.report import check_out, markdown_table, write_report
from daguerre.metrics import (
    ClassSums,
    Gaussian,
    Interval,
    Moments,
    bootstrap,
    clip_score,
    cosine,
    frechet,
    kernel_distance,
    precision_recall,
)
from daguerre.models.inception import INCEPTION_SIDE, Inception, resize_like_tensorflow
from daguerre.progress import track
from daguerre.share import in_shard, parse_shard
from daguerre.training.objectives.perceptual import PerceptualLoss, load_perceptual
from daguerre.training.run_identity import fingerprint
from daguerre.weights.catalog import DEFAULT, find
from daguerre.weights.hashing import network_hash
from daguerre.weights.inception import load_inception
from daguerre.weights.tensors.safetensors import read_safetensors, save_safetensors

FOLDER_BATCH = 16  # images per call of a network
BLOCK = 1024  # images per file of features
VALUES = "values"  # the tensor in such a file
STATISTICS = ".npz"
MAX_PAIRED = 10_000  # images of each folder that KID, precision and recall compare, evenly spaced: they look at all pairs
FEW_IMAGES = 2048  # fewer images than Inception has features: the distance is far above that of many images


class Embedder(Protocol):
    """Embeds squares x (N, 3, H, W) as features (N, D). size: their side in pixels; None: the network resizes whole images itself."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    @property
    def resize(self) -> str: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FolderComparison:
    """A distance of two sets of images; the baseline is that of two halves of the reference."""

    features: str
    features_sha256: str  # of the network's tensors
    resize: str  # how an image gets the size of the network
    images: int
    reference: int | None  # None: statistics of an unknown number of images
    frechet: float
    kid: float | None  # this and the next three only on Inception, for whose features they were defined
    inception_score: float | None
    precision: float | None
    recall: float | None
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
            kid = "" if found.kid is None else f"{1000 * found.kid:.3f}"
            rows = [[f"{found.images} images", f"{found.frechet:.6g}", kid]]
            if found.halves_frechet is not None:
                rows.append([f"baseline: two halves of the {found.reference} reference images", f"{found.halves_frechet:.6g}", ""])
            parts += [
                f"Distances on the features of {found.features}, network `{found.features_sha256[:12]}`; 0 is equal. Images are "
                f"{found.resize}.",
                markdown_table(["", "Fréchet", "KID × 1000"], rows),
            ]
            if found.inception_score is not None:
                parts.append(f"Inception score {found.inception_score:.6g}, of all images at once.")
            if found.precision is not None:
                parts.append(f"Precision {found.precision:.4f}, recall {found.recall:.4f}, with 3 neighbours; 1 is best.")
            if min(found.images, found.reference or found.images) < FEW_IMAGES:
                parts.append("With few images the Fréchet distance is too large; compare only numbers of equally many images.")
        if self.clip_score is not None:
            parts.append(f"CLIP score of {self.captioned} images with their captions by `{self.scorer}`: {self.clip_score} (0 to 2.5).")
        return "\n\n".join(parts)


def run_folders(config: EvaluateConfig) -> FolderReport | None:
    """Measure the folder `config.images`: against `config.data`, a folder or a file of statistics, if given, and against its captions by a
    CLIP, if given. Writes the report, and the mean and covariance of the features as `statistics.npz`.

    Returns None if other processes have not yet computed their share.

    Raises:
        DaguerreError: a folder has no images, or fewer than two for a distance; the weights are others; nothing is to be measured.
    """
    assert config.images is not None
    check_out(config.out, "evaluation", "report.json")
    if config.data is None and config.scorer is None:
        raise DaguerreError("Nothing to measure: give --data, a folder to compare with, or --clip, a CLIP that scores the captions.")
    blocks = BlockStore(config.cache, parse_shard(config.shard))
    statistics = None if config.data is None or not config.data.endswith(STATISTICS) else read_statistics(Path(config.data))
    images, folder = (_open(folder, config) for folder in (config.images, None if statistics else config.data))
    assert images is not None
    captioned = [item for item in images.items if item.caption.strip()]
    if config.scorer is not None and not captioned:
        raise DaguerreError(f"No image in '{config.images}' has a caption, so --clip has nothing to score; write captions in .txt files.")
    embed = None if config.data is None else _embedder(config)
    features = None if embed is None else _embed(embed, images, blocks)
    others = None if embed is None or folder is None else _embed(embed, folder, blocks)
    scorer = None if config.scorer is None else load_clip_scorer(config.scorer)
    scores = None if scorer is None else score_captions(scorer, images.part(captioned), blocks)
    if blocks.missing:
        return None
    reference = statistics or others
    comparison = None if embed is None or features is None or reference is None else compare_features(embed, features, reference)
    score = None if scores is None else bootstrap(torch.cat([*scores.parts()]))
    reference_name = None if reference is None else str(config.data)
    report = FolderReport(str(config.images), reference_name, comparison, scorer and scorer.name, score, len(captioned))
    with atomic_path(config.out) as temporary:
        write_report(temporary, asdict(report), report.markdown())
        if features is not None:
            moments = features.moments()
            np.savez(temporary / f"statistics{STATISTICS}", mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
    return report


def read_statistics(file: Path) -> Gaussian:
    """The `mu` and `sigma` of an .npz file, as pytorch-fid and the statistics of ADM have them. Raises DaguerreError for other files."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DaguerreError(f"'{file}' has no statistics ({error}); give an .npz file with the arrays mu and sigma.") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DaguerreError(f"'{file}' has a mu {tuple(mean.shape)} and a sigma {tuple(covariance.shape)}, which do not fit together.")
    return Gaussian.of_moments(mean, covariance)


@dataclass(frozen=True)
class Blocks:
    """The values (N, …) of the images of a folder, in blocks: tensors, or the files that have them."""

    folder: Path
    blocks: Sequence[Tensor | Path]
    count: int

    def parts(self) -> Iterator[Tensor]:
        """The values of each block."""
        for block in self.blocks:
            yield block if isinstance(block, Tensor) else read_safetensors(block)[VALUES]

    def moments(self, start: int = 0, step: int = 1) -> Moments:
        """The sums over every `step`-th feature from `start`. Raises DaguerreError for fewer than two images."""
        if self.count < 2:
            raise DaguerreError(f"'{self.folder}' has only one image; a distance needs two or more.")
        return reduce(add, (Moments.of_features(part[start::step]) for part in self.parts()))  # a block has an even number of images

    def sample(self) -> Tensor:
        """At most MAX_PAIRED values, evenly spaced."""
        step = -(-self.count // MAX_PAIRED)
        return torch.cat([part[-number * BLOCK % step :: step] for number, part in enumerate(self.parts())])


@dataclass
class BlockStore:
    """Computes the values of folders in blocks of images.

    cache: a folder for them, in which blocks that exist are not computed again; else they are kept in memory. shard: the blocks that this
    process computes. missing: the number of blocks that are those of other processes and do not exist yet.
    """

    cache: Path | None = None
    shard: tuple[int, int] = (0, 1)
    missing: int = 0

    def compute(self, source: FolderDataset, key: Sequence[str], function: Callable[[Sequence[FolderItem]], Tensor]) -> Blocks:
        """The values of all images by function(images), (B, …). key: identifies the function."""
        blocks: list[Tensor | Path] = []
        for number, items in enumerate(track(list(_batches(source.items, BLOCK)), f"measuring {source.folder}")):
            file = self._file(items, key)
            if file is not None and file.is_file():
                blocks.append(file)
            elif in_shard(number, self.shard):
                values = torch.cat([function(batch) for batch in _batches(items, FOLDER_BATCH)])
                if file is not None:
                    save_safetensors(file, {VALUES: values})
                blocks.append(values if file is None else file)
            else:
                self.missing += 1
        return Blocks(source.folder, blocks, len(source.items))

    def _file(self, items: Sequence[FolderItem], key: Sequence[str]) -> Path | None:
        if self.cache is None:
            return None
        states = [(item.path.name, item.caption, *item.version) for item in items]
        return self.cache / f"{fingerprint(key, states)}.safetensors"


def compare_features(embed: Embedder, x: Blocks, reference: Blocks | Gaussian) -> FolderComparison:
    """The distances between the features of two folders, or of a folder and given statistics.

    Raises DaguerreError if a folder has fewer than two images.
    """
    mine = x.moments()
    others = reference if isinstance(reference, Gaussian) else Gaussian.of(reference.moments())
    inception = isinstance(embed, InceptionEmbedder)
    halves = pair = None
    if isinstance(reference, Blocks):
        halves = [Gaussian.of(reference.moments(start, 2)) for start in (0, 1)] if reference.count >= 4 else None
        pair = (x.sample(), reference.sample()) if inception else None
    precision, recall = (None, None) if pair is None else precision_recall(*pair)
    return FolderComparison(
        features=embed.name,
        features_sha256=embed.sha256,
        resize=embed.resize,
        images=x.count,
        reference=reference.count if isinstance(reference, Blocks) else None,
        frechet=frechet(Gaussian.of(mine), others),
        kid=None if pair is None else kernel_distance(*pair).mean,
        inception_score=inception_score(embed, x) if isinstance(embed, InceptionEmbedder) else None,
        precision=precision,
        recall=recall,
        halves_frechet=None if halves is None else frechet(*halves),
    )


@torch.inference_mode()
def inception_score(embed: "InceptionEmbedder", x: Blocks) -> float:
    """The Inception score of the features of a folder."""
    return reduce(add, (ClassSums.of_logits(embed.network.class_logits(part)) for part in x.parts())).inception_score()


def score_captions(scorer: ClipScorer, source: FolderDataset, blocks: BlockStore) -> Blocks:
    """The CLIP score (N,) of each image with its caption."""
    side = scorer.clip.config.vision.size

    def scores(items: Sequence[FolderItem]) -> Tensor:
        x = torch.stack([to_tensor(fit_image(item.open(min_side=side), (side, side), "center")) for item in items])
        return clip_score(cosine(scorer.embed_images(x)[:, None], scorer.embed_texts([item.caption for item in items])[:, None])[:, 0, 0])

    return blocks.compute(source, ("CLIP score", network_hash(scorer.clip)), scores)


@dataclass(frozen=True)
class InceptionEmbedder:
    """The features of the Fréchet inception distance: an image of any size is stretched to 299×299 pixels by the network's own filter."""

    network: Inception
    name: str
    size: int | None = None
    resize: str = "stretched to 299×299 by the bilinear filter of TensorFlow 1"

    @property
    def sha256(self) -> str:
        """Of the network's tensors."""
        return network_hash(self.network)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x)


@dataclass(frozen=True)
class EncoderEmbedder:
    """The features of the embedded model's encoder, for squares of `size` pixels."""

    network: PerceptualLoss
    size: int | None
    name: str = "the embedded model's encoder"

    @property
    def sha256(self) -> str:
        """Of the network's tensors."""
        return self.network.key

    @property
    def resize(self) -> str:
        return f"cropped to squares and resized to {self.size} pixels by the Lanczos filter"

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network.embed(x)


def _embedder(config: EvaluateConfig) -> Embedder:
    if config.features is None:
        return EncoderEmbedder(load_perceptual((find(DEFAULT),)), config.resolution)
    return InceptionEmbedder(load_inception(config.features), f"Inception ({config.features.name})")


def _embed(embed: Embedder, source: FolderDataset, blocks: BlockStore) -> Blocks:
    """The features (N, D) of all images."""

    def features(items: Sequence[FolderItem]) -> Tensor:
        images = [item.open() for item in items]
        if embed.size is None:
            x = [resize_like_tensorflow(to_tensor(image)[None], INCEPTION_SIDE)[0] for image in images]
        else:
            x = [to_tensor(fit_image(image, (embed.size, embed.size), "center")) for image in images]
        return embed(torch.stack(x)).cpu()

    return blocks.compute(source, ("features", embed.sha256, embed.resize), features)


def _open(folder: str | Path | None, config: EvaluateConfig) -> FolderDataset | None:
    if folder is None:
        return None
    source = open_image_files(folder, config.resolution, crop="center", skip_bad=config.skip_bad)
    print_summary(source)
    return source


def _batches(items: Sequence[FolderItem], size: int) -> Iterator[Sequence[FolderItem]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
