"""The loss of a prior over codes: the mean of −log p(c_i | c_<i, condition)  (Esser et al. 2021, arXiv:2012.09841, eq. 8 and 9).

With `pkeep` below 1, each input code is replaced by a random one with probability 1 − pkeep, while the targets stay: the prior learns to
continue after wrong codes (pkeep in the authors' code).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from daguerre.data.images import to_image
from daguerre.data.order import epoch_index
from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import DEFAULT_SAMPLING, Sampling, bits_per_code, bits_per_pixel, uniform_noise
from daguerre.models.latent_prior import Prior
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.training.batch_random import BatchRandom


@dataclass(frozen=True)
class CodeBatch:
    """codes (B, h, w) int64; condition (B, P) or (B, h', w') int64, or None."""

    codes: Tensor
    condition: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, part: slice) -> "CodeBatch":
        return CodeBatch(self.codes[part], None if self.condition is None else self.condition[part])


class CodeBatches:
    """Batches of codes in memory, shuffled in each epoch; a batch depends only on (seed, step)."""

    def __init__(self, codes: Tensor, condition: Tensor | None, batch_size: int, seed: int):
        """codes (N, h, w) of any integer type; condition (N, …) or None. Raises DaguerreError if their numbers differ."""
        if condition is not None and len(condition) != len(codes):
            raise DaguerreError(f"There are {len(condition)} conditions for {len(codes)} grids of codes; give one for each.")
        self.codes, self.condition, self.batch_size, self.seed = codes, condition, batch_size, seed

    def batch(self, step: int) -> CodeBatch:
        """The batch of one step; a batch may span two epochs."""
        first, count = step * self.batch_size, len(self.codes)
        chosen = [epoch_index(self.seed, position, count) for position in range(first, first + self.batch_size)]
        return CodeBatch(self.codes[chosen].long(), None if self.condition is None else self.condition[chosen].long())

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[CodeBatch]:
        """The batches of steps start, start + 1, …; they are in memory, so no worker is needed."""
        while True:
            yield self.batch(start)
            start += 1


class PriorTask:
    """Trains a prior over the codes of a frozen first stage."""

    name = "prior"
    ema_networks = ("prior",)

    def __init__(
        self,
        prior: Prior,
        first_stage: VQModel,
        preview: CodeBatch,
        labels: Sequence[str] = (),
        *,
        pkeep: float = 1.0,
        sampling: Sampling = DEFAULT_SAMPLING,
    ):
        """preview, labels: size, conditions and labels of the sample grid. Raises DaguerreError if the codebook sizes differ."""
        if not 0 < pkeep <= 1:
            raise DaguerreError(f"pkeep is {pkeep}; it must be above 0 and at most 1.")
        if prior.config.codes != first_stage.config.quantizer.codes:
            raise DaguerreError(f"The prior has {prior.config.codes} codes, but the first stage has {first_stage.config.quantizer.codes}.")
        self.networks: dict[str, nn.Module] = {"prior": prior}
        self.prior, self.first_stage, self.preview, self.pkeep, self.sampling = prior, first_stage.eval(), preview, pkeep, sampling
        self.labels = labels or [""] * len(preview)
        self.no_decay = no_decay(prior)
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self.device = device
        self.first_stage.to(device)

    def losses(
        self, batch: CodeBatch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        condition = None if batch.condition is None else batch.condition.to(self.device)
        inputs = corrupt(batch.codes, self.pkeep, self.prior.config.codes, random).to(self.device)
        logits = networks["prior"](inputs, condition)  # (B, h, w, K)
        loss = F.cross_entropy(logits.flatten(0, 2).float(), batch.codes.flatten().to(self.device))
        bits = loss.detach() / math.log(2)
        yield "prior", loss, {"bits/code": bits, "bits/pixel": bits_per_pixel(bits, self.first_stage.downsample_factor)}

    def sample(self) -> Image.Image:
        """Images of the preview conditions, from the same random numbers each time."""
        B, h, w = self.preview.codes.shape
        generators = [torch.Generator().manual_seed(seed) for seed in range(B)]
        condition = None if self.preview.condition is None else self.preview.condition.long().to(self.device)
        with torch.no_grad():
            *_, codes = self.prior.sample((h, w), uniform_noise(generators, (h, w)).to(self.device), condition, self.sampling)
            return labelled_grid([to_image(x) for x in self.first_stage.decode_codes(codes)], self.labels)


def no_decay(prior: Prior) -> list[nn.Parameter]:
    """The parameters without weight decay, as in the authors' code: all except the weights of linear layers and convolutions."""
    others = [module for module in prior.modules() if not isinstance(module, nn.Linear | nn.Conv2d)]
    return [parameter for module in others for parameter in module.parameters(recurse=False)]


@torch.no_grad()
def code_lengths(prior: Prior, data: CodeBatch, batch_size: int = 64) -> Tensor:
    """The exact code length of each grid in bits per code, (N,) on the CPU."""
    device = next(prior.parameters()).device
    lengths = []
    for start in range(0, len(data), batch_size):
        part = data[start : start + batch_size]
        codes = part.codes.long().to(device)
        condition = None if part.condition is None else part.condition.long().to(device)
        lengths.append(bits_per_code(prior(codes, condition), codes).cpu())
    return torch.cat(lengths)


def corrupt(codes: Tensor, pkeep: float, codebook_size: int, random: BatchRandom) -> Tensor:
    """Codes (B, h, w) in which each one is replaced by a uniformly random code with probability 1 − pkeep."""
    if pkeep == 1:
        return codes
    others = random.integers(codebook_size, codes.shape[1:])
    return torch.where(random.uniform(codes.shape[1:]) < pkeep, codes, others)
