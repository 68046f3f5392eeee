"""The loss of a model on a folder of images that it was not trained on.

    diffusion:  ‖F(x_t, t, c) − target‖² at equally spaced timesteps t, with its own noise for each image   (Ho et al. 2020, eq. 14)
    prior:      the exact code length in bits per code and per pixel                    (Esser et al. 2021, arXiv:2012.09841, eq. 8)

The noise of an image depends on its content and the seed, so that two models are compared on the same noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.conditioning import Conditioner
from daguerre.conditioning.prior_prefix import ClassPrefix, CoordinatePrefix, EmptyPrefix, TextPrefix
from daguerre.data import Batch, FolderDataset, to_tensor
from daguerre.data.catalog import open_dataset, print_summary
from daguerre.diffusion import training_pair
from daguerre.errors import DaguerreError
from daguerre.evaluation.config import EvaluateConfig
from daguerre.evaluation.report import check_out, markdown_table, write_report
from daguerre.metrics import Interval, bootstrap
from daguerre.models.autoregressive import bits_per_pixel
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.latent_prior import LatentPrior
from daguerre.progress import track
from daguerre.training.datasets.codes import conditions
from daguerre.training.objectives.prior import CodeBatch, code_lengths
from daguerre.weights import load

TIMESTEP_LEVELS = 10  # timesteps per image
HELD_OUT_BATCH = 8  # images per call


@dataclass(frozen=True)
class HeldOutReport:
    """The mean loss with a 95 % interval over the images, and for a diffusion model its parts by timestep."""

    model: str
    data: str
    images: int
    loss: str
    value: Interval
    by_timestep: Mapping[int, float]

    def markdown(self) -> str:
        parts = [f"# `{self.model}` on {self.images} images of {self.data}", f"{self.loss}: {self.value}. Brackets are 95 % intervals."]
        if self.by_timestep:
            parts.append(markdown_table(["timestep", "loss"], [[str(t), f"{loss:.4f}"] for t, loss in self.by_timestep.items()]))
        return "\n\n".join(parts)


def run_held_out(config: EvaluateConfig) -> HeldOutReport:
    """Measure a model on the folder `config.data`.

    Raises:
        DaguerreError: there are no images, a caption is missing, or the model has no loss on images alone.
    """
    assert config.data is not None
    check_out(config.out, "evaluation", "report.json")
    model = load(config.model)
    captioned = not isinstance(model, LatentPrior) or isinstance(model.prefix, ClassPrefix | TextPrefix)
    source = open_dataset(config.data, model.sample_size, captioned=captioned, crop="center", skip_bad=config.skip_bad)
    assert isinstance(source, FolderDataset)
    print_summary(source)
    batches = [source.part(source.items[i : i + HELD_OUT_BATCH]) for i in range(0, len(source), HELD_OUT_BATCH)]
    if isinstance(model, LatentPrior):
        value, by_timestep = bootstrap(torch.cat([prior_loss(model, part) for part in track(batches, "measuring")])), {}
        pixels = bits_per_pixel(torch.tensor(value.value), model.autoencoder.downsample_factor).item()
        loss = f"code length in bits per code ({pixels:.4f} bits per pixel)"
    else:
        losses = torch.cat([diffusion_loss(model, part, config.seed) for part in track(batches, "measuring")])  # (N, TIMESTEP_LEVELS)
        value, loss = bootstrap(losses.mean(dim=1).double()), f"mean squared error of the predicted {model.prediction}"
        by_timestep = dict(zip(levels(model).tolist(), losses.mean(dim=0).tolist(), strict=True))
    report = HeldOutReport(model.name, config.data, len(source), loss, value, by_timestep)
    with atomic_path(config.out) as temporary:
        write_report(temporary, asdict(report), report.markdown())
    return report


def levels(model: LatentDiffusion) -> Tensor:
    """The middles of TIMESTEP_LEVELS equal parts of the timesteps, (TIMESTEP_LEVELS,)."""
    return ((torch.arange(TIMESTEP_LEVELS) + 0.5) / TIMESTEP_LEVELS * len(model.schedule.alphas_cumprod)).long()


@torch.inference_mode()
def diffusion_loss(model: LatentDiffusion, source: FolderDataset, seed: int) -> Tensor:
    """The mean squared error (N, TIMESTEP_LEVELS) of each image at each timestep, without weights."""
    conditioner, device = model.conditioner, model.device
    if not isinstance(conditioner, Conditioner):
        raise DaguerreError(f"{model.name} has no text encoder; its loss on captions is not defined.")
    batch = _read(source)
    z = model.autoencoder.encode(batch.x.to(device)).float()
    condition = conditioner.encode_captions(batch.captions)
    eps = torch.stack([_noise(item.digest, seed, z.shape[1:]) for item in source.items]).to(device)  # (N, TIMESTEP_LEVELS, Z, h, w)
    losses = []
    for level, t in enumerate(levels(model).tolist()):
        alpha_bar = model.schedule.alphas_cumprod[t].float().to(device).expand(len(z))
        x_t, target = training_pair(model.prediction, z, eps[:, level], alpha_bar)
        output = model.unet(x_t, torch.full((len(z),), t, device=device), condition)
        losses.append((output.float() - target).square().mean(dim=(1, 2, 3)))
    return torch.stack(losses, dim=1).cpu()


@torch.inference_mode()
def prior_loss(model: LatentPrior, source: FolderDataset) -> Tensor:
    """The code length (N,) of each image in bits per code."""
    if not isinstance(model.prefix, EmptyPrefix | ClassPrefix | TextPrefix | CoordinatePrefix):
        raise DaguerreError(f"{model.name} needs a map or boxes for each image; its training writes the code length to nll.json.")
    batch = _read(source)
    codes = model.autoencoder.encode_codes(batch.x.to(next(model.autoencoder.parameters()).device)).cpu()
    return code_lengths(model.prior, CodeBatch(codes, conditions(model.prefix, codes, batch.captions, None)))


def _read(source: FolderDataset) -> Batch:
    """All images of a folder in their order."""
    samples = [source.sample(index, np.random.default_rng(0)) for index in range(len(source))]
    return Batch(to_tensor(np.stack([np.asarray(sample.image) for sample in samples])), [sample.caption for sample in samples])


def _noise(digest: str, seed: int, shape: torch.Size) -> Tensor:
    """(TIMESTEP_LEVELS, Z, h, w) standard normal noise of an image."""
    return torch.randn(TIMESTEP_LEVELS, *shape, generator=torch.Generator().manual_seed((int(digest[:15], 16) + seed) % 2**63))
