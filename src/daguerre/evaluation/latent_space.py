"""Explores the latent space of first stages: random latents, latents between two images, and the error on images that training did not use.

A plain autoencoder has no distribution over latents, so random ones decode to no image. A variational one was trained to have N(0, I)
(Kingma and Welling 2014, arXiv:1312.6114, section 2), so they decode to plausible ones. Codes drawn independently decode to patches without
order: this is why a VQ-VAE needs a prior (van den Oord et al. 2017, arXiv:1711.00937, section 3.3).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor

from daguerre.atomic_io import atomic_path, expand_user
from daguerre.data import BatchLoader, to_image
from daguerre.data.catalog import open_dataset
from daguerre.data.images import open_image, resize_and_crop, to_tensor
from daguerre.evaluation.config import DEFAULT_RESOLUTION, ReconstructConfig
from daguerre.evaluation.reconstruct import MAX_PSNR, model_label
from daguerre.evaluation.reconstruct_models import encode_and_decode
from daguerre.evaluation.report import check_out, markdown_table, write_report
from daguerre.metrics import Interval, bootstrap, psnr
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.images.grid import image_table
from daguerre.training.options.first_stage import require_multiple
from daguerre.weights import load_first_stage
from daguerre.weights.diffusers.vae import FirstStage
from daguerre.weights.loading import resolve_path

REPORT = "report.json"
WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the second image in an interpolation


@dataclass(frozen=True)
class ReconstructionError:
    """PSNR in decibels of one first stage on the images of DATA and, if there are any, on unseen ones."""

    name: str
    psnr: Interval
    unseen: Interval | None


@dataclass(frozen=True)
class LatentSpaceReport:
    """Of all first stages. size: side of the images in pixels."""

    data: str
    unseen: str | None
    size: int
    rows: tuple[ReconstructionError, ...]

    def markdown(self) -> str:
        """The errors as a table."""
        head = ["PSNR, dB ↑", self.data, *([f"unseen: {self.unseen}"] if self.unseen else [])]
        return markdown_table(head, [[row.name, str(row.psnr), *([str(row.unseen)] if row.unseen else [])] for row in self.rows])


@torch.no_grad()
def explore(config: ReconstructConfig) -> LatentSpaceReport:
    """Write the report and the sheets that the config asks for to `config.out`.

    Raises:
        DaguerreError: there are no images or no such first stage, the resolution does not fit, or `out` cannot be written.
    """
    check_out(config.out, "report on a latent space", REPORT)
    size = config.resolution or DEFAULT_RESOLUTION
    x = open_images_of(config, config.data, size)
    unseen = None if config.unseen is None else open_images_of(config, config.unseen, size)
    end = None if config.interpolate_to is None else open_images_of(config, str(config.interpolate_to), size)
    stages: dict[str, FirstStage] = {}
    for source in config.model:
        stage = load_first_stage(resolve_path(source, offline=False))
        require_multiple(size, stage.downsample_factor, f"'{source}'")
        stages[model_label(source)] = stage
    rows = [
        ReconstructionError(name, reconstruction_psnr(stage, x), None if unseen is None else reconstruction_psnr(stage, unseen))
        for name, stage in stages.items()
    ]
    report = LatentSpaceReport(config.data, config.unseen, size, tuple(rows))
    sheets: dict[str, Mapping[str, Tensor]] = {}
    if config.random:
        sheets["random"] = {name: decode_random(stage, config.random, size, config.seed) for name, stage in stages.items()}
    if end is not None:
        sheets["interpolation"] = {name: interpolate(stage, x[:1], end, WEIGHTS) for name, stage in stages.items()}
    with atomic_path(config.out) as temporary:
        write_report(temporary, asdict(report), report.markdown())
        for name, images in sheets.items():
            _sheet(images, [f"{weight:.1f}" for weight in WEIGHTS] if name == "interpolation" else ()).save(temporary / f"{name}.png")
    return report


def open_images_of(config: ReconstructConfig, data: str, size: int) -> Tensor:
    """An image file, or up to `config.num_images` of a dataset: (N, 3, size, size)."""
    path = expand_user(data)
    if path.is_file():
        return to_tensor(resize_and_crop(open_image(path), size))[None]
    source = open_dataset(data, size, crop="center", skip_bad=config.skip_bad)
    count = config.num_images if source.rendered else min(config.num_images, len(source))
    return BatchLoader(source, count, config.seed).batch(0).x


def reconstruction_psnr(stage: FirstStage, x: Tensor) -> Interval:
    """Mean PSNR of images x (N, 3, H, W) in decibels, with a bootstrap interval."""
    return bootstrap(psnr(x, encode_and_decode(stage, x)[1].clamp(-1, 1)).clamp(max=MAX_PSNR))


def decode_random(stage: FirstStage, count: int, size: int, seed: int) -> Tensor:
    """Decode random latents to images (count, 3, size, size): unscaled z ~ N(0, I), or independent, uniformly distributed codes."""
    side, generator = size // stage.downsample_factor, torch.Generator().manual_seed(seed)
    if isinstance(stage, VQModel):
        return stage.decode_codes(torch.randint(stage.config.quantizer.codes, (count, side, side), generator=generator))
    z = torch.randn(count, stage.config.latent_channels, side, side, generator=generator)
    return stage.decode((z - stage.config.shift_factor) * stage.config.scaling_factor)


def interpolate(stage: FirstStage, a: Tensor, b: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Decode (1 − w)·z_a + w·z_b for each weight w: images a and b (1, 3, H, W) to (len(weights), 3, H, W)."""
    z_a, z_b = stage.encode(a), stage.encode(b)
    return stage.decode(torch.cat([torch.lerp(z_a, z_b, weight) for weight in weights]))


def _sheet(images: Mapping[str, Tensor], columns: tuple[str, ...] | list[str]) -> Image.Image:
    """A row of images for each first stage."""
    return image_table([[*map(to_image, x.clamp(-1, 1))] for x in images.values()], rows=[*images], columns=columns).image
