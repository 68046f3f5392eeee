"""The loss of a prior over codes: the mean of −log p(c_i | c_<i, condition)  (Esser et al. 2021, arXiv:2012.09841, eq. 8 and 9).

With `keep` below 1 each code that the prior reads is replaced by a random one with probability 1 − keep, while what it has to tell stays:
so it learns to go on from mistakes (pkeep in the authors' code).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from daguerre.data.loader import epoch_index
from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import DEFAULT_SAMPLING, Sampling, bits_per_code, bits_per_pixel, uniform_noise
from daguerre.models.latent_prior import Prior
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.training.grids import to_images


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
    """Batches of codes that lie in memory; every epoch visits each grid once, in an order of its own. A pure function of (seed, step)."""

    def __init__(self, codes: Tensor, condition: Tensor | None, batch_size: int, seed: int):
        """codes (N, h, w) of any integer type; condition (N, …) or None. Raises DaguerreError where their numbers differ."""
        if condition is not None and len(condition) != len(codes):
            raise DaguerreError(f"There are {len(condition)} conditions for {len(codes)} grids of codes; give one for each.")
        self.codes, self.condition, self.batch_size, self.seed = codes, condition, batch_size, seed

    def batch(self, step: int) -> CodeBatch:
        """The batch of one step; batches run on across the end of an epoch."""
        first, count = step * self.batch_size, len(self.codes)
        chosen = [epoch_index(self.seed, position, count) for position in range(first, first + self.batch_size)]
        return CodeBatch(self.codes[chosen].long(), None if self.condition is None else self.condition[chosen].long())

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[CodeBatch]:
        """The batches of steps start, start + 1, …; they lie in memory, so that no worker is asked."""
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
        num_previews: CodeBatch,
        labels: Sequence[str] = (),
        *,
        pkeep: float = 1.0,
        sampling: Sampling = DEFAULT_SAMPLING,
    ):
        """`shown` gives size and conditions of the pictures in the sample grid, `labels` a word for each. Raises DaguerreError for another
        model's codebook."""
        if not 0 < pkeep <= 1:
            raise DaguerreError(f"keep is {pkeep}; it must be in (0, 1]: the share of codes that are read as they are.")
        if prior.config.codes != first_stage.config.quantizer.codes:
            raise DaguerreError(f"The prior is over {prior.config.codes} codes, the first stage has {first_stage.config.quantizer.codes}.")
        self.networks: dict[str, nn.Module] = {"prior": prior}
        self.plain, self.first_stage, self.shown, self.keep, self.how = prior, first_stage.eval(), num_previews, pkeep, sampling
        self.labels = labels or [""] * len(num_previews)
        self.undecayed = no_decay(prior)
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self.device = device
        self.first_stage.to(device)

    def losses(self, batch: CodeBatch, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        condition = None if batch.condition is None else batch.condition.to(self.device)
        read = corrupt(batch.codes, self.keep, self.plain.config.codes, draw).to(self.device)
        logits = self.networks["prior"](read, condition)  # (B, h, w, K)
        loss = F.cross_entropy(logits.flatten(0, 2).float(), batch.codes.flatten().to(self.device))
        bits = loss.detach() / math.log(2)
        yield "prior", loss, {"bits/code": bits, "bits/pixel": bits_per_pixel(bits, self.first_stage.downsample_factor)}

    def sample(self) -> Image.Image:
        """Pictures of the shown conditions, always of the same random numbers."""
        B, h, w = self.shown.codes.shape
        sources = [torch.Generator().manual_seed(seed) for seed in range(B)]
        condition = None if self.shown.condition is None else self.shown.condition.long().to(self.device)
        with torch.no_grad():
            *_, codes = self.plain.sample((h, w), uniform_noise(sources, (h, w)).to(self.device), condition, self.how)
            return labelled_grid(to_images(self.first_stage.decode_codes(codes)), self.labels)


def no_decay(prior: Prior) -> list[nn.Parameter]:
    """The parameters that weight decay spares, as the authors do: all but the weights of linear layers and convolutions."""
    others = [module for module in prior.modules() if not isinstance(module, nn.Linear | nn.Conv2d)]
    return [parameter for module in others for parameter in module.parameters(recurse=False)]


@torch.no_grad()
def code_lengths(prior: Prior, data: CodeBatch, at_once: int = 64) -> Tensor:
    """Exactly how many bits a code of each grid takes, its mean over the grid: (N,) on the CPU."""
    device = next(prior.parameters()).device
    lengths = []
    for start in range(0, len(data), at_once):
        part = data[start : start + at_once]
        codes = part.codes.long().to(device)
        condition = None if part.condition is None else part.condition.long().to(device)
        lengths.append(bits_per_code(prior(codes, condition), codes).cpu())
    return torch.cat(lengths)


def corrupt(codes: Tensor, keep: float, size: int, draw: torch.Generator) -> Tensor:
    """Codes (B, h, w) in which each was replaced by a uniform one out of `size` with probability 1 − keep."""
    if keep == 1:
        return codes
    others = torch.randint(size, codes.shape, generator=draw)
    return torch.where(torch.rand(codes.shape, generator=draw) < keep, codes, others)
