"""Reconstructions of one image of any size, or by several first stages next to each other, as one labelled table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daguerre.atomic_io import atomic_path, atomic_write, check_writable, expand_user
from daguerre.data import BatchLoader, to_image
from daguerre.data.catalog import open_dataset
from daguerre.data.images import open_image, resize_and_crop, to_tensor
from daguerre.errors import DaguerreError
from daguerre.evaluation.config import DEFAULT_RESOLUTION, ReconstructConfig
from daguerre.evaluation.reconstruct import GRID_ROWS, MAX_PSNR, model_label
from daguerre.evaluation.report import check_out, write_report
from daguerre.metrics import psnr, ssim
from daguerre.metrics.images import SSIM_WINDOW
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.images.grid import image_table
from daguerre.training.options.first_stage import require_multiple
from daguerre.weights import load_first_stage
from daguerre.weights.diffusers.vae import FirstStage
from daguerre.weights.loading import resolve_path
from daguerre.weights.tensors.safetensors import write_safetensors

PIXEL_BITS = 24  # of an uncompressed pixel


@dataclass(frozen=True)
class StageReconstruction:
    """One first stage. latent: its latent of one image in words. bits_per_pixel: with 8 bits per number, or log₂ K bits per code.

    psnr: mean in decibels. ssim: mean; None for images smaller than its window.
    """

    name: str
    model: str
    f: int
    latent: str
    bits_per_pixel: float
    psnr: float
    ssim: float | None

    @property
    def compression(self) -> float:
        """How many times smaller than uncompressed pixels the latent is."""
        return PIXEL_BITS / self.bits_per_pixel


@dataclass(frozen=True)
class StageComparison:
    """The report. width, height: of the images in pixels. notes: what was done to them."""

    data: str
    count: int
    width: int
    height: int
    notes: tuple[str, ...]
    rows: tuple[StageReconstruction, ...]

    def markdown(self) -> str:
        """The report as a table."""
        images = "1 image" if self.count == 1 else f"{self.count} images"
        lines = [
            f"# {images} of {self.data}, {self.width}×{self.height}",
            "",
            *(line for note in self.notes for line in (note, "")),
            "| | f | latent | bits/pixel | compression | PSNR, dB ↑ | SSIM ↑ |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            similarity = "–" if row.ssim is None else f"{row.ssim:.4f}"
            size = f"{row.f} | {row.latent} | {row.bits_per_pixel:.3f} | {row.compression:.1f}×"
            lines.append(f"| {row.name} | {size} | {row.psnr:.2f} | {similarity} |")
        return "\n".join(lines)


def run_models(config: ReconstructConfig) -> StageComparison:
    """Reconstruct with every first stage of the config; write the report, the table and, if requested, the latent.

    Raises:
        DaguerreError: there is no such image or first stage, the resolution does not fit, or a file cannot be written.
    """
    check_out(config.out, "reconstruction", "side-by-side.png")
    single = expand_user(config.data).is_file()
    if config.latent is not None:
        check_latent_path(config, single=single)
    if single:
        image = open_image(expand_user(config.data))
        x = to_tensor(image if config.resolution is None else resize_and_crop(image, config.resolution))[None]
    else:
        x = _images(config)
    stages = {source: load_first_stage(resolve_path(source, offline=False)) for source in config.model}
    rows, notes, reconstructions = [], [], []
    for source, stage in stages.items():
        f = stage.downsample_factor
        if not single:
            require_multiple(x.shape[-1], f, f"'{source}'")
        padded = pad_to_multiple(x, f)
        if padded.shape != x.shape:
            notes.append(f"padded to {padded.shape[-1]}×{padded.shape[-2]} for {model_label(source)}, and cropped back")
        z, y = encode_and_decode(stage, padded)
        y = y[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)
        reconstructions.append(y)
        rows.append(_row(source, stage, x, y, z))
        if config.latent is not None:
            save_latent(config.latent, z, source, stage, (x.shape[-2], x.shape[-1]))
    report = StageComparison(config.data, len(x), x.shape[-1], x.shape[-2], tuple(notes), tuple(rows))
    with atomic_path(config.out) as temporary:
        write_report(temporary, asdict(report), report.markdown())
        _table(x[:GRID_ROWS], [y[:GRID_ROWS] for y in reconstructions], rows).save(temporary / "side-by-side.png")
    return report


def _images(config: ReconstructConfig) -> Tensor:
    source = open_dataset(config.data, config.resolution or DEFAULT_RESOLUTION, crop="center", skip_bad=config.skip_bad)
    count = min(config.num_images, len(source)) if Path(config.data).is_dir() else config.num_images
    return BatchLoader(source, count, config.seed).batch(0).x


def pad_to_multiple(x: Tensor, f: int) -> Tensor:
    """Images x (B, 3, H, W) extended at the right and at the bottom by their edge pixels, so that both sides are multiples of f."""
    H, W = x.shape[-2:]
    return F.pad(x, (0, -W % f, 0, -H % f), mode="replicate")


@torch.no_grad()
def encode_and_decode(stage: FirstStage, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (N, Z, h, w), or codes (N, h, w) of a codebook, and reconstructions of images x (N, 3, H, W), one by one to save memory."""
    encode, decode = (stage.encode_codes, stage.decode_codes) if isinstance(stage, VQModel) else (stage.encode, stage.decode)
    z = torch.cat([encode(part) for part in x.split(1)])
    return z, torch.cat([decode(part) for part in z.split(1)])


def check_latent_path(config: ReconstructConfig, *, single: bool) -> None:
    """Raise DaguerreError if the latent cannot be written, or there are several."""
    assert config.latent is not None
    if not single or len(config.model) > 1:
        raise DaguerreError("--latent writes the latent of one image by one model; give an image file and a single --model.")
    if config.latent.suffix.lower() not in (".safetensors", ".npy"):
        raise DaguerreError(f"--latent is '{config.latent}'; it ends in .safetensors or .npy.")
    check_writable(config.latent)


def save_latent(path: Path, z: Tensor, source: str, stage: FirstStage, image_size: tuple[int, int]) -> None:
    """Write scaled latents (1, Z, h, w) or codes (1, h, w): as an array, or as "latent" or "codes" in a .safetensors with its origin."""
    path = expand_user(path)
    if path.suffix.lower() == ".npy":
        with atomic_write(path) as file:
            np.save(file, z.cpu().numpy())
        return
    name = "codes" if isinstance(stage, VQModel) else "latent"
    origin = {"model": source, "downsample_factor": str(stage.downsample_factor), "image_size": f"{image_size[1]}x{image_size[0]}"}
    with atomic_path(path) as temporary:
        write_safetensors(temporary, {name: z.cpu().contiguous()}, origin)


def _row(source: str, stage: FirstStage, x: Tensor, y: Tensor, z: Tensor) -> StageReconstruction:
    pixels = x.shape[-2] * x.shape[-1]
    if isinstance(stage, VQModel):
        codes = stage.config.quantizer.codes
        latent, bits = f"{z.shape[-1]}×{z.shape[-2]} codes of {codes}", z[0].numel() * math.log2(codes)
    else:
        latent, bits = f"{z.shape[1]}×{z.shape[-2]}×{z.shape[-1]}", 8 * z[0].numel()
    similarity = ssim(x, y).mean().item() if min(x.shape[-2:]) >= SSIM_WINDOW else None
    fidelity = psnr(x, y).clamp(max=MAX_PSNR).mean().item()
    return StageReconstruction(model_label(source), source, stage.downsample_factor, latent, bits / pixels, fidelity, similarity)


def _table(x: Tensor, reconstructions: Sequence[Tensor], rows: Sequence[StageReconstruction]) -> Image.Image:
    """A row for each image: the original, then its reconstruction by each first stage."""
    images, captions = [], []
    for i, original in enumerate(x):
        images.append([to_image(original), *(to_image(y[i]) for y in reconstructions)])
        captions.append([f"{x.shape[-1]}×{x.shape[-2]} pixels", *(_caption(x[i : i + 1], y[i : i + 1]) for y in reconstructions)])
    headings = [f"{row.name}: latent {row.latent}, {row.compression:.1f}× smaller" for row in rows]
    return image_table(images, captions, columns=["original", *headings]).image


def _caption(x: Tensor, y: Tensor) -> str:
    similarity = f", SSIM {ssim(x, y).item():.3f}" if min(x.shape[-2:]) >= SSIM_WINDOW else ""
    return f"PSNR {psnr(x, y).clamp(max=MAX_PSNR).item():.1f} dB{similarity}"
