"""Measures the reconstructions of a first stage, compared with JPEG and WebP of the same number of bytes.

A grid of codes takes log₂ K bits per code. A continuous latent has no defined size, so the report also has it with 8 bits per number:
each number rounded to one of 256 values between minimum and maximum.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import BatchLoader, FolderDataset, to_image
from daguerre.data.catalog import open_dataset, print_summary
from daguerre.evaluation.config import DEFAULT_RESOLUTION, ReconstructConfig
from daguerre.evaluation.report import check_out, write_report
from daguerre.metrics import Interval, bootstrap, frechet_distance, psnr, ssim
from daguerre.metrics.codecs import CODECS, encode_with_codec
from daguerre.metrics.images import SSIM_WINDOW
from daguerre.models.vector_quantizer import code_use
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.training.objectives.perceptual import PerceptualLoss, load_perceptual
from daguerre.training.options.first_stage import require_multiple
from daguerre.weights import load_first_stage
from daguerre.weights.catalog import DEFAULT, find
from daguerre.weights.diffusers.vae import FirstStage
from daguerre.weights.loading import resolve_path

RECONSTRUCT_BATCH = 1 << 18  # pixels per call
MAX_PSNR = 99.0  # decibels, for equal images
GRID_ROWS = 8  # images in the grid
EMBEDDED = "the embedded model's encoder"
LEVELS = 255  # steps between minimum and maximum of a latent with 8 bits per number


@dataclass(frozen=True)
class ReconstructionRow:
    """One compression method. bits_per_pixel: None if undefined. perceptual and frechet: on the features of the report. frechet: None for
    one image, which has no distribution."""

    name: str
    bits_per_pixel: float | None
    psnr: Interval
    ssim: Interval | None
    perceptual: Interval
    frechet: float | None


@dataclass(frozen=True)
class Reconstruction:
    """The report. features, features_hash: the network of the perceptual distances and the hash of its weights. codes: for a codebook, its
    size, the fraction in use, the perplexity, and the bits per pixel at the measured code frequencies."""

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
            frechet = "–" if row.frechet is None else f"{row.frechet:.4f}"
            lines.append(f"| {row.name} | {bits} | {row.psnr} | {row.ssim or '–'} | {row.perceptual} | {frechet} |")
        if missing := CODECS.keys() - {row.name for row in self.rows}:
            lines += ["", f"{' and '.join(sorted(missing))}: cannot encode all images in this number of bytes."]
        if self.codes:
            lines += [
                "",
                f"{100 * self.codes['use']:.0f} % of the {self.codes['size']:.0f} codes are in use, "
                f"perplexity {self.codes['perplexity']:.1f}; "
                f"{self.codes['bits per pixel']:.3f} bits/pixel at the measured code frequencies.",
            ]
        return "\n".join(lines)


def run(config: ReconstructConfig) -> Reconstruction:
    """Measure the reconstructions of a dataset by one first stage and write the report to `config.out`.

    Raises:
        DaguerreError: there are no images or no such first stage; `size` is not a multiple of its downsample factor; `out` cannot be
            written.
    """
    check_out(config.out, "reconstruction", "side-by-side.png")
    (model,), resolution = config.model, config.resolution or DEFAULT_RESOLUTION
    first_stage = load_first_stage(resolve_path(model, offline=False))
    require_multiple(resolution, first_stage.downsample_factor, f"'{model}'")
    perceptual = load_perceptual(config.perceptual) if config.perceptual else replace(load_perceptual((find(DEFAULT),)), name=EMBEDDED)
    source = open_dataset(config.data, resolution, crop="center", skip_bad=config.skip_bad)
    if isinstance(source, FolderDataset):
        print_summary(source)
    count = min(config.num_images, len(source)) if Path(config.data).is_dir() else config.num_images
    x = BatchLoader(source, count, config.seed).batch(0).x
    report, images = reconstruct(first_stage, x, perceptual, config)
    with atomic_path(config.out) as temporary:
        write_report(temporary, asdict(report), report.markdown())
        images.save(temporary / "side-by-side.png")
    return report


@torch.no_grad()
def reconstruct(
    first_stage: FirstStage, x: Tensor, perceptual: PerceptualLoss, config: ReconstructConfig
) -> tuple[Reconstruction, Image.Image]:
    """The report for images x (N, 3, H, W), and a grid of the first images with their reconstructions."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    count = max(1, RECONSTRUCT_BATCH // (x.shape[2] * x.shape[3]))
    (model,), usage, methods = config.model, None, {}
    name = model_label(model)
    if isinstance(first_stage, VQModel):
        codes = _in_batches(count, first_stage.encode_codes, x)
        bits = codes.numel() * math.log2(first_stage.config.quantizer.codes)
        methods[name] = (_in_batches(count, first_stage.decode_codes, codes), bits / pixels)
        usage = _code_usage(codes, first_stage.config.quantizer.codes, pixels)
    else:
        z = _in_batches(count, first_stage.encode, x)
        bits = 8 * z.numel()
        methods[f"{name}, 8 bits per number"] = (_in_batches(count, first_stage.decode, round_to_8_bits(z)), bits / pixels)
        methods[f"{name}, unrounded"] = (_in_batches(count, first_stage.decode, z), None)
    for codec in CODECS:
        if encoded := encode_with_codec(x, codec, math.ceil(bits / 8)):
            methods[codec] = (encoded.x, 8 * encoded.bytes / pixels)
    embedded = _in_batches(count, perceptual.embed, x)
    rows = tuple(_row(name, size, x, y, perceptual, embedded, count) for name, (y, size) in methods.items())
    report = Reconstruction(model, config.data, x.shape[-1], len(x), perceptual.name, perceptual.key, rows, usage)
    return report, _side_by_side(x[:GRID_ROWS], {name: y[:GRID_ROWS] for name, (y, _) in methods.items()})


def model_label(source: str) -> str:
    """The short name of a first stage: that of its file or folder, or of its training, whose result is always called model."""
    path = Path(source).resolve()
    return path.parent.name if path.name == "model" else path.name


def round_to_8_bits(z: Tensor) -> Tensor:
    """Round numbers (any shape) to 256 evenly spaced values between their minimum and maximum."""
    low, high = z.aminmax()
    step = (high - low) / LEVELS
    return z if step == 0 else ((z - low) / step).round() * step + low


def _code_usage(codes: Tensor, size: int, pixels: int) -> dict[str, float]:
    use = code_use(codes, size)
    bits = use.perplexity.log2().item() * codes.numel() / pixels
    return {"size": size, "use": use.share.item(), "perplexity": use.perplexity.item(), "bits per pixel": bits}


def _in_batches(count: int, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply a function to batches of `count` items of the inputs and concatenate the results."""
    return torch.cat([function(*batch) for batch in zip(*(x.split(count) for x in inputs), strict=True)])


def _row(
    name: str, bits: float | None, x: Tensor, y: Tensor, perceptual: PerceptualLoss, embedded: Tensor, count: int
) -> ReconstructionRow:
    y = y.clamp(-1, 1)
    return ReconstructionRow(
        name,
        bits,
        bootstrap(psnr(x, y).clamp(max=MAX_PSNR)),
        bootstrap(ssim(x, y)) if min(x.shape[-2:]) >= SSIM_WINDOW else None,
        bootstrap(_in_batches(count, perceptual.distance, x, y)),
        frechet_distance(embedded, _in_batches(count, perceptual.embed, y)) if len(x) > 1 else None,
    )


def _side_by_side(x: Tensor, reconstructions: dict[str, Tensor]) -> Image.Image:
    """A grid with a row per image: the original, then its reconstruction by each method."""
    columns, labels = [[*map(to_image, x)]], [["original"] * len(x)]
    for name, y in reconstructions.items():
        columns.append([*map(to_image, y)])
        labels.append([f"{name} {db:.1f} dB" for db in psnr(x, y.clamp(-1, 1))])
    images = [image for row in zip(*columns, strict=True) for image in row]
    return labelled_grid(images, [label for row in zip(*labels, strict=True) for label in row], columns=len(columns))
