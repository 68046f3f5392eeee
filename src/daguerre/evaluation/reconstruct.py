"""What a first stage keeps of images: there and back, in numbers, beside JPEG and WebP of the same size in bytes.

A grid of codes takes log₂ K bits a code. A continuous latent has no size of its own: each of its numbers is rounded to one of 256 values
between the least and the largest, so that it takes a byte, and what comes back of that is measured, too.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import Tensor

from daguerre.atomic_io import atomic_path, check_writable
from daguerre.data import BatchLoader, to_image
from daguerre.data.catalog import open_dataset
from daguerre.errors import DaguerreError
from daguerre.metrics import Interval, bootstrap, frechet_distance, psnr, ssim
from daguerre.metrics.codecs import OPTIONS, encode_with_codec
from daguerre.metrics.images import WINDOW
from daguerre.models.vector_quantizer import code_use
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.training.objectives.perceptual import PerceptualLoss, load_perceptual
from daguerre.training.options.first_stage import require_multiple
from daguerre.weights import load_first_stage
from daguerre.weights.catalog import DEFAULT, find
from daguerre.weights.diffusers.vae import FirstStage

RECONSTRUCT_BATCH = 1 << 18  # pixels in one call
EQUAL = 99.0  # decibels that equal images count as
SHOWN_IMAGES = 8  # images on the sheet
EMBEDDED = "the embedded model's encoder"
LEVELS = 255  # steps between the least and the largest number of a latent, for a byte each


@dataclass(frozen=True)
class ReconstructConfig:
    """Send images through a first stage and back, and measure what is left of them."""

    data: tyro.conf.Positional[str]
    """A folder of images, or shapes or emoji, which are drawn."""
    model: str
    """The folder or file of a first stage, or of a model that has one."""
    out: Path = Path("reconstruction")
    """Where to write report.json, report.md and side-by-side.png."""
    size: int = 64
    """Pixels a side."""
    count: int = 64
    """How many images."""
    perceptual: tuple[Path, ...] = ()
    """Whose eyes compare: files with LPIPS's weights, or the folder of a CLIP or an autoencoder; the embedded model's, if none."""
    seed: int = 0
    """Of the draw."""
    skip_bad: bool = False
    """Skip and count unreadable images instead of stopping."""


@dataclass(frozen=True)
class ReconstructionRow:
    """One way to keep the images. bits_per_pixel: None where it has no size; perceptual and frechet by the eyes of the report."""

    name: str
    bits_per_pixel: float | None
    psnr: Interval
    ssim: Interval | None
    perceptual: Interval
    frechet: float


@dataclass(frozen=True)
class Reconstruction:
    """The report. eyes: whose features the distances are on, eyes_hash that of their weights. codes: for a codebook, its size, the share in
    use, the perplexity, and the bits per pixel at these frequencies."""

    model: str
    data: str
    size: int
    count: int
    features: str
    features_hash: str
    rows: tuple[ReconstructionRow, ...]
    codes: dict[str, float] | None

    def markdown(self) -> str:
        """The report as a table."""
        lines = [
            f"# {self.count} images of {self.data}, {self.size}×{self.size}, through {self.model}",
            "",
            f"Means with 95 % bootstrap intervals; perceptual and Fréchet distance on the features of {self.features} "
            f"(sha256 {self.features_hash[:12]}).",
            "",
            "| | bits/pixel | PSNR, dB ↑ | SSIM ↑ | perceptual ↓ | Fréchet ↓ |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            bits = "–" if row.bits_per_pixel is None else f"{row.bits_per_pixel:.3f}"
            lines.append(f"| {row.name} | {bits} | {row.psnr} | {row.ssim or '–'} | {row.perceptual} | {row.frechet:.4f} |")
        if missing := OPTIONS.keys() - {row.name for row in self.rows}:
            lines += ["", f"{' and '.join(sorted(missing))}: no file of all images is as small as this."]
        if self.codes:
            lines += [
                "",
                f"Of {self.codes['size']:.0f} codes {100 * self.codes['use']:.0f} % are in use, perplexity {self.codes['perplexity']:.1f}: "
                f"{self.codes['bits per pixel']:.3f} bits/pixel at their own frequencies.",
            ]
        return "\n".join(lines)


def run(config: ReconstructConfig) -> Reconstruction:
    """Measure, and write everything to `config.out`.

    Raises:
        DaguerreError: there are no images or no such first stage, the size does not divide, or `out` can't be written.
    """
    _check_out(config.out)
    first_stage = load_first_stage(config.model)
    require_multiple(config.size, first_stage.downsample_factor, f"'{config.model}'")
    if config.count < 2:
        raise DaguerreError(f"count is {config.count}; a distance between sets of images needs 2 or more.")
    eyes = load_perceptual(config.perceptual) if config.perceptual else replace(load_perceptual((find(DEFAULT),)), name=EMBEDDED)
    source = open_dataset(config.data, config.size, crop="center", skip_bad=config.skip_bad)
    count = min(config.count, len(source)) if Path(config.data).is_dir() else config.count
    x = BatchLoader(source, count, config.seed).batch(0).x
    report, images = reconstruct(first_stage, x, eyes, config)
    with atomic_path(config.out) as beside:
        beside.mkdir()
        (beside / "report.json").write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (beside / "report.md").write_text(report.markdown() + "\n", encoding="utf-8")
        images.save(beside / "side-by-side.png")
    return report


@torch.no_grad()
def reconstruct(first_stage: FirstStage, x: Tensor, eyes: PerceptualLoss, config: ReconstructConfig) -> tuple[Reconstruction, Image.Image]:
    """The report of images x (N, 3, H, W), and the first of them side by side with what comes back."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    count = max(1, RECONSTRUCT_BATCH // (x.shape[2] * x.shape[3]))
    path, use, ways = Path(config.model).resolve(), None, {}
    name = path.parent.name if path.name == "model" else path.name  # a recipe's result is always called model
    if isinstance(first_stage, VQModel):
        codes = _by_parts(count, first_stage.encode_codes, x)
        bits = codes.numel() * math.log2(first_stage.config.quantizer.codes)
        ways[name] = (_by_parts(count, first_stage.decode_codes, codes), bits / pixels)
        use = _used(codes, first_stage.config.quantizer.codes, pixels)
    else:
        z = _by_parts(count, first_stage.encode, x)
        bits = 8 * z.numel()
        ways[f"{name}, a byte a number"] = (_by_parts(count, first_stage.decode, in_bytes(z)), bits / pixels)
        ways[f"{name}, unrounded"] = (_by_parts(count, first_stage.decode, z), None)
    for codec in OPTIONS:
        if kept := encode_with_codec(x, codec, math.ceil(bits / 8)):
            ways[codec] = (kept.x, 8 * kept.bytes / pixels)
    embedded = _by_parts(count, eyes.embed, x)
    rows = tuple(_row(name, size, x, y, eyes, embedded, count) for name, (y, size) in ways.items())
    report = Reconstruction(config.model, config.data, config.size, len(x), eyes.name, eyes.key, rows, use)
    return report, _side_by_side(x[:SHOWN_IMAGES], {name: y[:SHOWN_IMAGES] for name, (y, _) in ways.items()})


def in_bytes(z: Tensor) -> Tensor:
    """Numbers (any shape) rounded to 256 values, evenly spread from the least to the largest of them."""
    low, high = z.aminmax()
    step = (high - low) / LEVELS
    return z if step == 0 else ((z - low) / step).round() * step + low


def _used(codes: Tensor, size: int, pixels: int) -> dict[str, float]:
    use = code_use(codes, size)
    bits = use.perplexity.log2().item() * codes.numel() / pixels
    return {"size": size, "use": use.share.item(), "perplexity": use.perplexity.item(), "bits per pixel": bits}


def _by_parts(count: int, change: Callable[..., Tensor], *whole: Tensor) -> Tensor:
    """`change` of `count` images, latents or grids of codes at a time, of each of `whole` the same."""
    return torch.cat([change(*parts) for parts in zip(*(each.split(count) for each in whole), strict=True)])


def _row(name: str, bits: float | None, x: Tensor, y: Tensor, eyes: PerceptualLoss, embedded: Tensor, count: int) -> ReconstructionRow:
    y = y.clamp(-1, 1)
    return ReconstructionRow(
        name,
        bits,
        bootstrap(psnr(x, y).clamp(max=EQUAL)),
        bootstrap(ssim(x, y)) if min(x.shape[-2:]) >= WINDOW else None,
        bootstrap(_by_parts(count, eyes.distance, x, y)),
        frechet_distance(embedded, _by_parts(count, eyes.embed, y)),
    )


def _side_by_side(x: Tensor, ways: dict[str, Tensor]) -> Image.Image:
    """A row for each image: itself, then what comes back of each way."""
    columns, labels = [[*map(to_image, x)]], [["image"] * len(x)]
    for name, y in ways.items():
        columns.append([*map(to_image, y)])
        labels.append([f"{name} {db:.1f} dB" for db in psnr(x, y.clamp(-1, 1))])
    across = [image for row in zip(*columns, strict=True) for image in row]
    return labelled_grid(across, [label for row in zip(*labels, strict=True) for label in row], columns=len(columns))


def _check_out(folder: Path) -> None:
    """Refuse, before the work, a folder that can't be written or holds something other than an earlier reconstruction."""
    if folder.exists() and not (folder / "side-by-side.png").is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DaguerreError(f"'{folder}' exists and holds no earlier reconstruction, so it is not overwritten; name another with --out.")
    check_writable(folder / "report.json")
