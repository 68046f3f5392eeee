"""Measures the variational bound of a diffusion model of pixels in bits per dimension: the code length of images that the model guarantees.

Every term of the bound is computed, so each image takes as many calls of the network as the model has steps (see
`diffusion.variational_bound`). Uncompressed 8-bit images have 8 bits per dimension; a dimension is one colour value of one pixel.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.conditioning.class_map_image import LabelConditioner
from daguerre.data import Batch, BatchLoader
from daguerre.diffusion import Conditioning, Denoiser, LearnedVariance, VariationalBound, generators, randn_per_image, variational_bound
from daguerre.errors import DaguerreError
from daguerre.evaluation.config import RENDERED_IMAGES, EvaluateConfig
from daguerre.evaluation.report import check_out, write_report
from daguerre.metrics import Interval, bootstrap
from daguerre.models.identity_autoencoder import IdentityAutoencoder
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.progress import progress
from daguerre.training.datasets.classes import open_labelled
from daguerre.training.datasets.images import open_training_images
from daguerre.training.options.images import TrainingImageOptions
from daguerre.weights import load

BOUND_BATCH = 1 << 16  # pixels per call


@dataclass(frozen=True)
class BoundReport:
    """Bits per dimension over images. prior: L_T. steps: Σ L_{t−1}, the rate without L_T. decoder: L_0, the distortion.

    by_step: the mean of every term, from L_0 to L_{T−1}.
    """

    model: str
    data: str
    variance: str
    total: Interval
    prior: Interval
    steps: Interval
    decoder: Interval
    by_step: tuple[float, ...]

    def to_json(self) -> Mapping[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def markdown(self) -> str:
        """The report as a table."""
        return "\n".join(
            [
                f"# `{self.model}` on {self.total.count} images of {self.data}",
                "",
                f"The variational bound in bits per dimension, with the {self.variance} variance. Brackets are 95 % intervals over images; "
                "8-bit images without compression have 8.",
                "",
                "| bound | L_T | Σ L_{t−1}, t > 1 | L_0 |",
                "|---:|---:|---:|---:|",
                f"| {self.total} | {self.prior.value:.2e} | {self.steps} | {self.decoder} |",
            ]
        )


def run(config: EvaluateConfig) -> BoundReport:
    """Measure a model and write `report.json` and `report.md` to `config.out`.

    Raises:
        DaguerreError: there is no such model, it is not a diffusion model of pixels, there are no images, or `out` cannot be written.
    """
    check_out(config.out, "evaluation", "report.json")
    model = load(config.model)
    if not isinstance(model, LatentDiffusion) or not isinstance(model.autoencoder, IdentityAutoencoder):
        raise DaguerreError(f"{model.name!r} is not a diffusion model of pixels, and only these have bits per dimension; see `train ddpm`.")
    bound = measure_bound(model, images_for(model, config), config.seed)
    report = BoundReport(
        model.name,
        str(config.data),
        model.variance,
        bootstrap(bound.total),
        bootstrap(bound.prior),
        bootstrap(bound.steps[:, 1:].sum(1)),
        bootstrap(bound.steps[:, 0]),
        tuple(bound.steps.mean(0).tolist()),
    )
    with atomic_path(config.out) as temporary:
        write_report(temporary, report.to_json(), report.markdown())
    return report


def images_for(model: LatentDiffusion, config: EvaluateConfig) -> Batch:
    """The images to measure, at the model's size, with their classes as captions if the model has any."""
    assert config.data is not None
    folder = config.data not in RENDERED_IMAGES
    options = TrainingImageOptions(crop="center", skip_bad=config.skip_bad) if folder else TrainingImageOptions()
    open_images = open_labelled if isinstance(model.conditioner, LabelConditioner) else open_training_images
    source = open_images(config.data, model.sample_size, options)[0]
    count = config.num_images if source.rendered else min(config.num_images, len(source))
    return BatchLoader(source, count, config.seed).batch(0)


@torch.no_grad()
def measure_bound(model: LatentDiffusion, images: Batch, seed: int) -> VariationalBound:
    """The bound of every image, given its class if the model has any. The noise of image i depends on seed + i alone."""
    per_call = max(1, BOUND_BATCH // images.x[0, 0].numel())
    sources = generators([seed + i for i in range(len(images))])
    parts = []
    with progress() as bar:
        task = bar.add_task("measuring", total=len(images) * len(model.schedule))
        for first in range(0, len(images), per_call):
            part, rows = images[first : first + per_call], slice(first, first + per_call)
            parts.append(_bound(model, part, sources[rows], partial(bar.advance, task, len(part))))
    return VariationalBound(torch.cat([part.prior for part in parts]), torch.cat([part.steps for part in parts]))


def _bound(model: LatentDiffusion, images: Batch, sources: list[torch.Generator], on_step: Callable[[], None]) -> VariationalBound:
    x0 = images.x.to(model.device)
    conditioner = model.conditioner
    cond = conditioner.encode_captions(images.captions) if isinstance(conditioner, LabelConditioner) else Conditioning()
    network = LearnedVariance(model.unet) if model.variance == "learned" else model.unet
    denoiser = Denoiser(network, model.schedule, model.prediction, model.dtype)

    def noise() -> Tensor:
        return randn_per_image(sources, x0.shape[1:]).to(x0)

    return variational_bound(
        lambda x, sigma: denoiser(x, sigma, cond),
        x0,
        model.schedule,
        noise,
        variance=model.variance,
        fraction=network.fraction if isinstance(network, LearnedVariance) else None,
        on_step=lambda _t: on_step(),
    )
