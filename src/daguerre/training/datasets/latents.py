"""Latents, codes and text states computed once and read many times, so that a training step costs no more than its network.

The frozen parts see each sample once: `cache_latents` and `cache_codes` draw samples in the order of (seed, step), encode them, and keep
means in half precision, or codes, with their captions in one folder. `CachedLatents`, or a prior's `CodeBatches`, then give batches whose
order is again a pure function of (seed, step).
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from daguerre.atomic_io import atomic_path
from daguerre.data import Batch, BatchLoader
from daguerre.data.loader import epoch_index, prefetch
from daguerre.diffusion import Conditioning
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.vq_model import VQModel
from daguerre.progress import track
from daguerre.training.processes import is_distributed, rank, state, world
from daguerre.weights.tensors.safetensors import write_safetensors


class CachedLatents:
    """Batches of scaled latents (B, Z, h, w) and captions; every epoch visits each of them once, in an order of its own."""

    def __init__(self, latents: Tensor, captions: list[str], batch_size: int, seed: int, covered: Tensor | None = None):
        """covered: what `Batch` says, of each sample."""
        self.latents, self.captions, self.batch_size, self.seed, self.covered = latents, captions, batch_size, seed, covered

    def batch(self, step: int) -> Batch:
        """The batch of one step; batches run on across the end of an epoch."""
        first, count = step * self.batch_size, len(self.captions)
        chosen = [epoch_index(self.seed, position, count) for position in range(first, first + self.batch_size)]
        covered = None if self.covered is None else self.covered[chosen]
        return Batch(self.latents[chosen], [self.captions[i] for i in chosen], latent=True, coverage=covered)

    def stream(self, start: int, workers: int = 1, *, processes: bool = False) -> Iterator[Batch]:
        """The batches of steps start, start + 1, …; they lie in memory, so that one thread keeps up with any network."""
        return prefetch(self.batch, start, workers=1, ahead=2)


def cache_latents(
    batches: BatchLoader, autoencoder: AutoencoderKL, count: int, folder: Path, key: str, workers: int = 1
) -> tuple[Tensor, list[str]]:
    """Encode the first `count` samples of `batches`, or read them back from `folder` if they were encoded under the same `key`.

    Returns means as scaled latents (N, Z, h, w) in float16, and captions; N is `count` rounded up to whole batches. `key` names everything
    they depend on: data, seed, weights. Several processes share the work.
    """
    return _encoded_once(batches, autoencoder, lambda x: autoencoder.encode(x).half(), "latents", count, folder / key, workers)


def cache_codes(
    batches: BatchLoader, first_stage: VQModel, count: int, folder: Path, key: str, workers: int = 1
) -> tuple[Tensor, list[str]]:
    """The codes (N, h, w) of the first `count` samples of `batches`, in the smallest type that holds them, and the samples' captions.

    All else is as in `cache_latents`. A sample is a function of (seed, place) alone, so two caches of one seed are aligned: a class is the
    caption, and a map's codes are those of a second source, which draws the map of the same index, under the map's own first stage.
    """
    small = torch.int16 if first_stage.config.quantizer.codes <= 1 << 15 else torch.int32
    return _encoded_once(
        batches, first_stage, lambda x: first_stage.encode_codes(x).to(small), "codes", count, folder / f"codes-{key}", workers
    )


@torch.no_grad()
def _encoded_once(
    batches: BatchLoader, network: nn.Module, encode: Callable[[Tensor], Tensor], name: str, count: int, stem: Path, workers: int
) -> tuple[Tensor, list[str]]:
    share = math.ceil(count / batches.batch_size / world())  # batches of each process
    paths = [stem.with_name(f"{stem.name}-{count}-{r}-of-{world()}.safetensors") for r in range(world())]
    if not (path := paths[rank()]).is_file():
        device = next(network.parameters()).device
        encoded, captions = [], []
        drawn = islice(batches.stream(rank() * share, workers, processes=workers > 1), share)
        for batch in track(drawn, "encoding pictures once", share, shown=rank() == 0):
            encoded.append(encode(batch.x.to(device)).cpu())
            captions += batch.captions
        with atomic_path(path) as beside:
            write_safetensors(beside, {name: torch.cat(encoded)}, {"captions": json.dumps(captions)})
    if is_distributed():
        state().wait_for_everyone()
    encoded, captions = [], []
    for path in paths:
        with safe_open(path, "pt") as file:
            encoded.append(file.get_tensor(name))
            captions += json.loads(file.metadata()["captions"])
    return torch.cat(encoded), captions


class CachedCaptions:
    """Conditions of captions, each read once: for folders of pictures, whose captions come again every epoch."""

    def __init__(self, read: Callable[[Sequence[str]], Conditioning]):
        self._read = read
        self._known: dict[str, Conditioning] = {}

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditions of a batch of captions, in order."""
        for caption in dict.fromkeys(captions):
            if caption not in self._known:
                self._known[caption] = self._read([caption])
        return Conditioning.cat([self._known[caption] for caption in captions])
